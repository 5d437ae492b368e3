"""RecTools 0.19. `rectools`: SASRecModel, its `fit` and its `recommend`.

The same model as ours: padding masked, items scaled by sqrt(d)
(benchmarks/parity/PARITY.md).

`rectools-best`: `rectools.fast_transformers`, which 0.19 adds for large data: sequences
built by tensor operations and FlatSASRecNet, without the data frames and item networks
of SASRecModel. It has the network but no trainer, so the loop is here. Two things are
set as on the other sides: the feed-forward, which it fixes at GELU and width 4 d, and
the initial values, Xavier normal as in SASRecModel. Three things differ: no scaling by
sqrt(d), eps 1e-5, and a residual that adds to the state before the norm.
"""

import logging
import warnings

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LambdaCallback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.fast_transformers import (
    FlatSASRecNet,
    SequenceBatchDataset,
    build_sequences,
)
from rectools.models import SASRecModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.speed.sides import worker

QUERIES = 256  # a step


def make_dataset(users, items) -> Dataset:
    rows = np.arange(len(users))  # in the order of time
    frame = {Columns.User: users, Columns.Item: items, Columns.Weight: 1}
    times = pd.to_datetime(rows, unit="s")
    return Dataset.construct(pd.DataFrame(frame | {Columns.Datetime: times}))


def default(spec: dict, data: worker.Data, ready) -> None:
    kept = worker.newest(data, spec["length"] + 1)
    train = make_dataset(data.users[kept], data.items[kept])
    asked = make_dataset(*worker.query_rows(data))
    queries = np.arange(len(data.targets))

    def evaluate():
        model.is_fitted = True  # otherwise `recommend` fails before the last epoch
        found = model.recommend(queries, asked, k=worker.TOP, filter_viewed=True)
        top = np.zeros((len(queries), worker.TOP), np.int64)
        top[found[Columns.User], found[Columns.Rank] - 1] = found[Columns.Item]
        return top

    tokens = int(kept.sum()) - len(np.unique(data.users[kept]))
    callbacks = worker.hooks(ready, data, tokens, evaluate)
    model = SASRecModel(
        n_blocks=spec["blocks"],
        n_heads=spec["heads"],
        n_factors=spec["dim"],
        dropout_rate=spec["dropout"],
        session_max_len=spec["length"],
        batch_size=spec["batch"],
        recommend_batch_size=QUERIES,
        loss="softmax",
        lr=spec["lr"],  # its b2 is 0.98
        use_key_padding_mask=True,
        pos_encoding_kwargs={"use_scale_factor": True},
        get_trainer_func=lambda: Trainer(
            max_epochs=-1,
            callbacks=[LambdaCallback(**callbacks)],
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
    )
    model.fit(train)


def fast(spec: dict, data: worker.Data, ready) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dim, length, rate = spec["dim"], spec["length"], spec["dropout"]
    log = torch.from_numpy(data.users).long(), torch.from_numpy(data.items).long()
    x, y, items, _ = build_sequences(*log, torch.arange(len(data.users)), length)
    assert len(items) == data.n_items  # so its item numbers are ours
    sequences = SequenceBatchDataset(x, y)
    loader = DataLoader(sequences, batch_size=spec["batch"], shuffle=True)

    shape = dim, spec["blocks"], spec["heads"], length, rate
    net = FlatSASRecNet(data.n_items, *shape)
    for block in net.blocks:
        inner = nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(rate), nn.Linear(dim, dim)
        block.ffn = nn.Sequential(*inner, nn.Dropout(rate))
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter.data)
    net.to(device)
    adam = torch.optim.Adam(net.parameters(), lr=spec["lr"], betas=(0.9, spec["b2"]))

    sizes = data.end - data.begin
    query, item = (torch.from_numpy(rows).long() for rows in worker.query_rows(data))
    asked = torch.zeros((len(sizes), length), dtype=torch.long)
    for row, begin, end in zip(asked, data.begin, data.end, strict=True):
        history = data.log[max(begin, end - length) : end]
        row[length - len(history) :] = torch.from_numpy(history)
    edges = np.append(0, np.cumsum(sizes))

    def train_epoch():
        net.train()
        for batch in loader:
            batch = {name: values.to(device) for name, values in batch.items()}
            adam.zero_grad()
            logits = net(batch).flatten(0, 1)
            cross_entropy(logits, batch["y"].flatten() - 1, ignore_index=-1).backward()
            adam.step()

    @torch.no_grad()
    def evaluate():
        net.eval()
        table, found = net.all_item_embeddings(), []
        for start in range(0, len(asked), QUERIES):
            part = asked[start : start + QUERIES].to(device)
            scores = net.encode_last(part) @ table.T
            rows = slice(edges[start], edges[start + len(part)])
            scores[query[rows] - start, item[rows] - 1] = -torch.inf
            found.append(scores.topk(worker.TOP).indices.cpu() + 1)
        return torch.cat(found).numpy()

    worker.serve(ready, data, int((y > 0).sum()), train_epoch, evaluate)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    spec, data, ready = worker.start("rectools", "torch", "pytorch-lightning", "numpy")
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    {"rectools": default, "rectools-best": fast}[spec["side"]](spec, data, ready)


if __name__ == "__main__":
    main()
