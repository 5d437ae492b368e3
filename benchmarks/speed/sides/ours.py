"""create_jax, trained by its loop (`train.fit`, without checkpoints).

`ours`: SASRec. `ours-lightgcn`: LightGCN. `ours-create` and `ours-create-lightgcn`: the
joint phase of CREATE, without warm-up, over UltraGCN and over two layers of LightGCN.
As in a run, queries are packed once, by the first evaluation.
"""

import functools

import jax
import numpy as np

from benchmarks.speed.phase import prepare
from benchmarks.speed.sides import worker
from create_jax import build, evaluate, steps
from create_jax.configs import common
from create_jax.data.interactions import Interactions
from create_jax.data.splits import Holdout

METHODS = {
    "ours": ("sasrec", "none"),
    "ours-lightgcn": ("lightgcn", "none"),
    "ours-create": ("create", "ultragcn"),
    "ours-create-lightgcn": ("create", "lightgcn"),
}


def make_config(spec: dict, data: worker.Data):
    method, graph = METHODS[spec["side"]]
    config = common.get_config(method)
    config.seed = spec["seed"]
    config.seq.update(
        blocks=spec["blocks"],
        heads=spec["heads"],
        dropout=spec["dropout"],
        max_len=spec["length"],
        feed_forward=1,
    )
    config.model.dim = spec["dim"]
    config.train.batch = spec["batch"]
    config.optim.update(lr=spec["lr"], b2=spec["b2"])
    config.warmup.epochs = 0
    if graph != "none":
        config.graph.encoder = graph
    if method == "lightgcn":
        config.graph.batch_size = spec["pairs"]
        config.graph.lightgcn.layers = spec["layers"]
        config.optim.b2 = 0.999  # RecBole's Adam
        # Xavier, as RecBole starts.
        config.model.user_std = (2 / (data.n_users + 1 + spec["dim"])) ** 0.5
        config.model.item_std = (2 / (data.n_items + 1 + spec["dim"])) ** 0.5
    build.check(config)
    return config


def main() -> None:
    spec, data, ready = worker.start("jax", "flax", "optax", "numpy")
    config = make_config(spec, data)
    names = range(data.n_users), range(data.n_items)
    log = Interactions(data.users, data.items, np.arange(len(data.users)), *names)
    holdout = Holdout(
        users=data.query_users,
        log=data.log,
        begin=data.begin,
        end=data.end,
        targets=data.targets,
        offsets=np.arange(len(data.targets) + 1),
        candidates=np.arange(data.n_items + 1) > 0,
    )

    prepared = prepare(config, log)
    model, feed, mesh = prepared.model, prepared.feed, prepared.mesh
    state, epoch = prepared.state, 0
    score = evaluate.model_scores(model, mesh, by_graph=model.encoder is None)
    evaluator = evaluate.make_evaluator(
        config, holdout, score, mesh, model.mask, ks=(worker.TOP,), keep_lists=True
    )

    def train_epoch():
        nonlocal state, epoch
        plan, losses = feed.plan(epoch), None
        for chunk in range(feed.chunks):
            batch = prepared.batch(plan, chunk)
            jax.device_get(losses)
            state, losses = prepared.run(state, batch, prepared.graph)
        losses = jax.device_get(losses)
        if steps.first_bad_step(losses) is not None:
            raise SystemExit(f"{spec['side']}: a loss is not finite")
        epoch += 1

    def top_lists():
        return evaluator.run(state.params, prepared.graph).top

    if feed.sequences is not None:
        tokens = int(feed.sequences.lengths.sum())
    else:
        tokens = len(prepared.pairs.users)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    told = functools.partial(ready, device=device)
    worker.serve(told, data, tokens, train_epoch, top_lists)


if __name__ == "__main__":
    main()
