"""UltraGCN on its ML-1M split and LightGCN on Gowalla, against their published logs.

python -m benchmarks.parity.graphs ultragcn --data=DIR [--epochs=86]
python -m benchmarks.parity.graphs lightgcn --data=DIR [--epochs=1000]

DIR holds train.txt.gz and test.txt.gz, a line per user: `user item item ...`. All items
but the user's training items are ranked; recall@20 and ndcg@20 are means over test
users. Published: UltraGCN 0.2787 / 0.2642 (epoch 86); LightGCN, K = 3, 0.1071 / 0.0894
after epoch 5 and 0.1824 / 0.1547 in the end.
"""

import argparse
import gzip
import time
from pathlib import Path

import jax
import numpy as np

from create_jax import evaluate, optim, parallel, steps
from create_jax.data import graph as graphs
from create_jax.data.splits import Holdout
from create_jax.models import lightgcn, ultragcn
from create_jax.models.create import Create
from create_jax.models.graph_encoder import Draw

K = 20
# xue-pai/UltraGCN, ml-1m_config.ini; its code sums over the batch.
ULTRAGCN = dict(
    **dict(w1=1e-7, w2=1.0, w3=1e-7, w4=1.0, negative_weight=200.0, negatives=200),
    **dict(item_weight=1e-3, norm_weight=1e-4, neighbours=10, reduce="sum"),
)
# gusye1234/LightGCN-PyTorch, defaults.
LIGHTGCN = dict(layers=3, l2=1e-4, reduce="mean", loss="bpr", gamma=0.0)
SETTINGS = {
    "ultragcn": dict(dim=128, batch=1024, std=1e-3, epochs=86, graph=ULTRAGCN),
    "lightgcn": dict(dim=64, batch=2048, std=0.1, epochs=1000, graph=LIGHTGCN),
}
ENCODERS = {"ultragcn": ultragcn, "lightgcn": lightgcn}


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Users and items (from 1) of a file of lines `user item item ...`."""
    with gzip.open(path, "rt") as file:
        rows = [np.array(line.split(), np.int32) for line in file if line.strip()]
    users = np.concatenate([np.full(len(row) - 1, row[0], np.int32) for row in rows])
    return users, np.concatenate([row[1:] for row in rows]) + 1


def by_user(users, items):
    order = np.lexsort((items, users))
    return users[order], items[order]


def holdout(train, test, n_users: int, n_items: int) -> Holdout:
    """Every user with test items: hide the training items, rank all others."""
    asked = np.unique(test[0])
    offsets = np.searchsorted(test[0], np.append(asked, n_users))
    starts = np.searchsorted(train[0], np.arange(n_users + 1))
    return Holdout(
        users=asked,
        log=train[1],
        begin=starts[asked],
        end=starts[asked + 1],
        targets=test[1],
        offsets=offsets,
        candidates=np.arange(n_items + 1) > 0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", choices=SETTINGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--every", type=int, default=5, help="epochs between tests")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    own = SETTINGS[flags.encoder]

    train, test = (
        by_user(*read(flags.data / f"{n}.txt.gz")) for n in ("train", "test")
    )
    n_users = int(max(train[0].max(), test[0].max())) + 1
    n_items = int(max(train[1].max(), test[1].max()))
    offsets = np.searchsorted(train[0], np.arange(n_users + 1))
    pairs = graphs.Pairs(*train, offsets)
    print(f"{n_users:,} users, {n_items:,} items, {len(train[0]):,} training pairs")

    model = Create(
        n_users=n_users,
        n_items=n_items,
        dim=own["dim"],
        encoder=None,
        graph=ENCODERS[flags.encoder],
        graph_settings=own["graph"],
        local=None,
        align=None,
        item_std=own["std"],
        user_std=own["std"],
    )
    mesh = parallel.make_mesh()
    graph = model.graph.prepare(None, pairs, model.n_rows, own["graph"], mesh.size)
    graph = parallel.place(mesh, graph, steps.graph_specs(graph))

    tx = optim.make(lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, clip=0.0)
    state = parallel.place(mesh, steps.init(model, tx, flags.seed))
    phase = steps.Phase("graph", 1, 0.0, 1.0, 0.0)
    least = -(-len(train[0]) // own["batch"])
    chunks = -(-least // 16)
    chunk = -(-least // chunks)  # at most a step a chunk more than published
    size = -(-len(train[0]) // (chunks * chunk) // mesh.size) * mesh.size

    def edges(epoch, number):
        if flags.encoder == "ultragcn":
            batch = whole[number * chunk : (number + 1) * chunk]
            rng = np.random.default_rng((flags.seed, epoch, number))
            drawn = rng.integers(1, n_items + 1, (*batch.shape, 200), np.int32)
            weights = np.ones(batch.shape, np.float32)
            return graphs.EdgeBatch(train[0][batch], train[1][batch], drawn, weights)
        place = epoch * chunks + number
        draw = Draw(chunk, size, n_items, flags.seed, place, joint=False, owners=None)
        return graphs.uniform_users(pairs, draw)

    held = holdout(train, test, n_users, n_items)
    score = evaluate.model_scores(model, mesh, by_graph=True)

    def squashed(params, graph):  # the published LightGCN ranks sigmoids, in float32
        scores = score(params, graph)
        return lambda queries: jax.nn.sigmoid(scores(queries))

    evaluators = {
        name: evaluate.Evaluator(held, by, mesh, ks=(K,), max_len=1, filter_seen=True)
        for name, by in (("scores", score), ("their sigmoids", squashed))
    }
    run, start = None, time.monotonic()
    for epoch in range(flags.epochs or own["epochs"]):
        order = np.random.default_rng((flags.seed, epoch)).permutation(len(train[0]))
        total = 0.0
        whole = np.resize(order, chunks * chunk * size).reshape(-1, size)
        for number in range(chunks):
            batch = steps.StepBatch(None, edges(epoch, number))
            batch = parallel.place(mesh, batch, steps.batch_specs(batch))
            if run is None:
                run = steps.compile_phase(
                    model, phase, tx, flags.seed, mesh, batch, graph
                )
            state, losses, _ = run(state, batch, graph, parallel.wishes(mesh)(0))
            total += losses["loss"].mean()
        if (epoch + 1) % flags.every == 0:
            line = f"epoch {epoch + 1}: loss {float(total) / chunks:.4f}"
            for name, evaluator in evaluators.items():
                found = evaluator.run(state.params, graph).metrics
                recall, ndcg = found[f"recall@{K}"], found[f"ndcg@{K}"]
                line += f", by {name} recall@{K} {recall:.4f}, ndcg@{K} {ndcg:.4f}"
            print(f"{line}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
