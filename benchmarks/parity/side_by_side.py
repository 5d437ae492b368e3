"""Our SASRec, eSASRec and BERT4Rec against public ones, each trained by its own code.

python -m benchmarks.parity.side_by_side sasrec --path=FILE [--seeds=3] [--epochs=10]
python -m benchmarks.parity.side_by_side esasrec --data=quickstart [--epochs=10]
python -m benchmarks.parity.side_by_side bert4rec --path=FILE [--epochs=30]

Both sides train on the same rows: of the rows up to the global cut, the last L + 1 of
each user, or L for BERT4Rec. Both train for the same number of epochs without
validation, with L 10, d 64, 2 blocks, batch 128 and Adam 1e-3. The same code ranks the
queries of `test["last"]` for both. It ranks the items of those rows without the user's
history. Exits with 1 if the means of NDCG@10 over seeds differ by more than the best
and the worst seed of one side.

sasrec: RecTools' SASRecModel and its `fit`: softmax over all items, scaling by sqrt(d),
padding masked, 1 head, dropout 0.5 in the same four places (input, attention weights,
after the relu, after W2), Adam's b2 0.98 (its default). Left as each side has it:

* Start: RecTools draws every matrix Xavier normal, so positions and layers start 4 to 8
  times wider than our N(0, 0.02) and items narrower (0.013); its feed-forward biases
  are uniform, ours 0.
* RecTools counts positions from the newest item, ours from the oldest.
* Its softmax has the padding row, which never moves, and lacks items not in its rows.
* Its norms inside the blocks have eps 1e-5, ours 1e-8.
* Its batches are drawn at random, the last one smaller; each of ours has its share of
  every length.

esasrec: the same with RecTools' LiGRLayers, sampled softmax over 256 items and dropout
0.2, without scaling. Both count positions from the newest item. RecTools draws the 256
for each place of each sequence, ours for each row of sequences.

bert4rec: transformers' BertModel, trained here as by antklen/sasrec-bert4rec-recsys23:
every item hidden with probability 0.2, cross-entropy over all items at the hidden ones,
their mean over the batch; tied output without bias; 2 heads, feed-forward 4 d, dropout
0.1, Adam's b2 0.999, N(0, 0.02). A query is the last L - 1 items and [MASK]. Different:
BERT's constant token type, and batches as above.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rectools.models.nn.transformers.ligr import LiGRLayers
from torch.nn.functional import cross_entropy

from benchmarks.parity import bert4rec, histories, rectools_net
from benchmarks.speed.sides import worker
from create_jax import build, config_file, evaluate, parallel, protocol, train
from create_jax.data import splits
from create_jax.data.interactions import take
from create_jax.rundir import Run
from create_jax.writers import JsonLines

LENGTH, BATCH, LEARNING_RATE, HIDDEN = 10, 128, 1e-3, 0.2
NAMES = ("ndcg@10", "recall@10")
EPOCHS = {"sasrec": 10, "esasrec": 10, "bert4rec": 30}
SETTINGS = {  # of `seq`
    "sasrec": dict(heads=1, dropout=0.5, feed_forward=1),
    "esasrec": dict(heads=1, dropout=0.2, feed_forward=4),
    "bert4rec": dict(heads=2, dropout=0.1, feed_forward=4),
}


def make_config(flags):
    config = config_file.load(flags.data, flags.method)
    config.data.path = flags.path
    config.split.validation = "none"
    config.eval.update(cold_items="drop", candidates="train")  # all items of the peer
    config.seq.update(blocks=2, max_len=LENGTH, **SETTINGS[flags.method])
    config.model.update(dim=64, item_std=0.02)
    config.train.update(batch=BATCH, epochs=flags.epochs, mask=HIDDEN)
    config.optim.update(
        lr=LEARNING_RATE, b2=0.999 if flags.method == "bert4rec" else 0.98
    )
    config.checkpoint.seconds = 1e9
    build.check(config)
    return config


def learned_rows(method: str, log) -> np.ndarray:
    """[R] bool: the rows that training reads, as inputs or as targets."""
    return worker.newest(log, LENGTH if method == "bert4rec" else LENGTH + 1)


def queries(holdout) -> list[np.ndarray]:
    """The whole history of each query, oldest first."""
    ends = zip(holdout.begin, holdout.end, strict=True)
    return [holdout.log[begin:end] for begin, end in ends]


# --- the two sides: (config, log, holdout) -> metrics, seconds of training ------------


def ours(config, log, holdout):
    mesh = parallel.make_mesh()
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory)
        lines = JsonLines(workdir / "metrics.jsonl")
        run = Run(config, workdir, mesh, lines)
        phases = build.make_phases(config)
        fitted = train.fit(run, "fixed", phases, log, None)
    found = rank(config, holdout, mesh, fitted.score, fitted.params, **fitted.reads)
    return found, fitted.progress.seconds["train"]


def peer(config, log, holdout):
    """Either peer scores by the product of a state and an item's vector."""
    mesh, start = parallel.make_mesh(), time.monotonic()
    fit = fit_bert if config.method == "bert4rec" else fit_rectools
    encode = fit(config, log)
    seconds = time.monotonic() - start
    states, items = encode(queries(holdout))
    params = parallel.place(mesh, {"states": states, "items": items})

    def score(params, graph):
        return lambda asked: params["states"][asked.query] @ params["items"].T

    return rank(config, holdout, mesh, score, params), seconds


def rank(config, holdout, mesh, score, params, mask: int = 0) -> dict:
    evaluator = evaluate.make_evaluator(
        config, holdout, score, mesh, mask, ks=(10,), lists=False
    )
    return evaluator.run(params, ()).metrics


# --- RecTools -------------------------------------------------------------------------


def fit_rectools(config, log):
    """histories -> (states [Q, D], items [I + 1, D])."""
    if config.method == "esasrec":
        own = dict(
            loss="sampled_softmax",
            n_negatives=config.loss.negatives,
            transformer_layers_type=LiGRLayers,
            transformer_layers_kwargs={
                "ff_factors_multiplier": config.seq.feed_forward
            },
        )
    else:
        own = dict(loss="softmax", pos_encoding_kwargs={"use_scale_factor": True})
    net = rectools_net.fit(
        log,
        LENGTH,
        config.seed,
        n_factors=config.model.dim,
        n_blocks=config.seq.blocks,
        n_heads=config.seq.heads,
        dropout_rate=config.seq.dropout,
        lr=config.optim.lr,
        batch_size=config.train.batch,
        epochs=config.train.epochs,
        **own,
    )

    def encode(past):
        known = [items[net.ids[items] > 0][-LENGTH:] for items in past]
        x = torch.from_numpy(net.ids[histories.pad(known, "left", LENGTH)])
        with torch.no_grad():
            table = net.torch.item_model.get_all_embeddings()
            states = net.torch.encode_sessions({"x": x}, table)[:, -1]
        return states.numpy(), np.asarray(net.table())

    return encode


# --- BERT4Rec -------------------------------------------------------------------------


def fit_bert(config, log):
    """histories -> (states [Q, D], items [I + 1, D])."""
    torch.manual_seed(config.seed)
    bert = bert4rec.new_bert(log.n_items, LENGTH)
    starts = np.searchsorted(log.users, np.arange(log.n_users + 1))
    past = [log.items[a:b][-LENGTH:] for a, b in itertools.pairwise(starts)]
    past = [items for items in past if len(items) >= 2]
    rows = torch.from_numpy(histories.pad(past, "right", LENGTH)).long()
    adam = torch.optim.Adam(bert.parameters(), lr=config.optim.lr)
    for _ in range(config.train.epochs):
        for numbers in torch.randperm(len(rows)).split(config.train.batch):
            adam.zero_grad()
            hidden_loss(bert, rows[numbers], log.n_items).backward()
            adam.step()
    bert.eval()

    def encode(past):
        asked = [np.append(items[1 - LENGTH :], log.n_items + 1) for items in past]
        x = torch.from_numpy(histories.pad(asked, "right", LENGTH)).long()
        with torch.no_grad():
            states = bert(x, attention_mask=(x > 0).long()).last_hidden_state
            last = states[torch.arange(len(x)), (x > 0).sum(1) - 1]
            items = bert.embeddings.word_embeddings.weight.detach()
        return last.numpy(), items[: log.n_items + 1].numpy()

    return encode


def hidden_loss(bert, rows, n_items: int):
    """Mean cross-entropy of the items that are hidden this time."""
    hidden = (torch.rand(rows.shape) < HIDDEN) & (rows > 0)
    x = rows.masked_fill(hidden, n_items + 1)
    states = bert(x, attention_mask=(x > 0).long()).last_hidden_state[hidden]
    logits = states @ bert.embeddings.word_embeddings.weight[1 : n_items + 1].T
    loss = cross_entropy(logits, rows[hidden] - 1, reduction="sum")
    return loss / hidden.sum().clamp(min=1)


# --- side by side ---------------------------------------------------------------------


def run_side(name: str, config, log, holdout, seeds: int) -> np.ndarray:
    """[seeds, NAMES] in percent; prints each as it is found."""
    side, rows = {"ours": ours, "peer": peer}[name], []
    for seed in range(seeds):
        config.seed = seed
        found, seconds = side(config, log, holdout)
        rows.append([100 * found[metric] for metric in NAMES])
        epoch = seconds / config.train.epochs
        show(f"{name} seed {seed}", rows[-1], f"{epoch:8.1f} s/epoch")
    rows = np.array(rows)
    show(f"{name} mean", rows.mean(0))
    show(f"{name} deviation", rows.std(0, ddof=min(1, seeds - 1)))
    return rows


def show(name: str, values, more: str = "") -> None:
    text = "  ".join(f"{value:9.3f}" for value in values)
    print(f"{name:>14}: {text}{more}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=EPOCHS)
    parser.add_argument("--path", default="")
    parser.add_argument("--data", choices=("beauty", "quickstart"), default="beauty")
    parser.add_argument("--seeds", type=int, default=3, help="one has no range")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--only", choices=("ours", "peer"))
    # Beside another program, two threads on two cores took 20 times as long as one.
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    flags = parser.parse_args()
    flags.epochs = flags.epochs or EPOCHS[flags.method]
    torch.set_num_threads(flags.threads)

    config = make_config(flags)
    split = protocol.make_split(config, protocol.load(config))
    log, holdout = split.refit, split.test["last"]
    rows = learned_rows(flags.method, log)
    known = splits.known_items(take(log, rows))
    missed = holdout.candidates.sum() - known.sum()
    unlearned = (~known[holdout.targets]).sum()
    holdout = holdout._replace(candidates=holdout.candidates & known)
    print(
        f"{rows.sum():,} rows of {len(np.unique(log.users[rows])):,} users to learn "
        f"from; {known.sum():,} items to rank ({missed} only in earlier rows) for "
        f"{holdout.n_queries:,} queries ({unlearned} of such an item)\n"
        f"{'percent':>14}: " + "  ".join(f"{name:>9}" for name in NAMES),
        flush=True,
    )
    sides = [flags.only] if flags.only else ["ours", "peer"]
    ndcg = [run_side(n, config, log, holdout, flags.seeds)[:, 0] for n in sides]
    if flags.only:
        return 0
    difference = ndcg[0].mean() - ndcg[1].mean()
    largest = max(np.ptp(values) for values in ndcg)
    print(f"difference of means {difference:+.3f}, largest range {largest:.3f}")
    return int(not abs(difference) <= largest)


if __name__ == "__main__":
    sys.exit(main())
