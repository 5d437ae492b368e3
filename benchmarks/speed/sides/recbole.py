"""RecBole 1.2.1. `recbole`: its SASRec with loss_type CE. `recbole-lightgcn`: LightGCN.

Data come from atomic files. RecBole's Trainer trains by `_train_epoch`, and its models
score by `full_sort_predict`. RecBole does not hide the history of sequence models, so
the lists are made here. All rows train, because RecBole's splits would hold some out.

Its SASRec trains on one target a row and has a row for each prefix of a history. A
batch has as many targets as a batch of histories has on average, but at most 2,048, the
default. Its blocks are post-norm. Its Adam has b2 0.999.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

# Written for numpy 1 and scipy 1.10.
for name, alias in {"float_": np.float64, "complex_": np.complex128}.items():
    if not hasattr(np, name):
        setattr(np, name, alias)
if not hasattr(np, "unicode_"):
    np.unicode_ = np.str_
if not hasattr(scipy.sparse.dok_matrix, "_update"):

    def _update(self, values):
        for place, value in values.items():
            self._dict[place] = value

    scipy.sparse.dok_matrix._update = _update

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset  # noqa: E402
from recbole.data.dataloader import TrainDataLoader  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.sampler import Sampler  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

from benchmarks.speed.sides import worker  # noqa: E402

QUERIES, LARGEST = 256, 2048


def sequence_settings(spec: dict, targets: int, sequences: int) -> dict:
    batch = min(LARGEST, round(spec["batch"] * targets / sequences))
    return {
        "model": "SASRec",
        "train_batch_size": batch,
        "MAX_ITEM_LIST_LENGTH": spec["length"],
        "n_layers": spec["blocks"],
        "n_heads": spec["heads"],
        "hidden_size": spec["dim"],
        "inner_size": spec["dim"],
        "hidden_dropout_prob": spec["dropout"],
        "attn_dropout_prob": spec["dropout"],
        "hidden_act": "relu",
        "loss_type": "CE",
        "train_neg_sample_args": None,
    }


def graph_settings(spec: dict) -> dict:
    return {
        "model": "LightGCN",
        "train_batch_size": spec["pairs"],
        "embedding_size": spec["dim"],
        "n_layers": spec["layers"],
        "reg_weight": 1e-4,
        "require_pow": True,  # squared norms, as ours
    }


def write(folder: Path, data: worker.Data, kept: np.ndarray) -> None:
    (folder / "log").mkdir()
    with open(folder / "log" / "log.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        # Rows are in the order of time, and their numbers are exact in float32.
        for row in np.flatnonzero(kept):
            file.write(f"{data.users[row]}\t{data.items[row]}\t{row}\n")


def main() -> None:
    warnings.simplefilter("ignore")
    spec, data, ready = worker.start("recbole", "torch", "numpy", "pandas")
    torch.set_num_threads(spec["threads"])
    sequential, folder = spec["side"] == "recbole", Path(spec["folder"])
    os.chdir(folder)  # it writes logs and checkpoints to the current directory
    kept = np.ones(len(data.users), bool)
    if sequential:
        kept = worker.newest(data, spec["length"] + 1)
        sequences = len(np.unique(data.users[kept]))
        targets = int(kept.sum()) - sequences
        own = sequence_settings(spec, targets, sequences)
    else:
        own = graph_settings(spec)
    write(folder, data, kept)
    logging.disable(logging.INFO)
    settings = own | {
        "dataset": "log",
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"RS": [1.0]},
            "group_by": "none",
            "order": "TO",
            "mode": "full",
        },
        "learning_rate": spec["lr"],
        "show_progress": False,
    }
    sys.argv = sys.argv[:1]  # it would read the command line as its settings
    config = Config(model=own["model"], dataset="log", config_dict=settings)
    init_seed(spec["seed"], True)
    dataset = create_dataset(config)
    (train,) = dataset.build()
    sampler = None
    if not sequential:
        sampler = Sampler(["train"], [train], "uniform").set_phase("train")
    loader = TrainDataLoader(config, train, sampler, shuffle=True)
    model = get_model(config["model"])(config, train).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    theirs = np.zeros(data.n_items + 1, np.int64)  # its number of our item, 0 = none
    tokens = dataset.field2id_token["item_id"][1:].astype(np.int64)
    theirs[tokens] = np.arange(1, len(tokens) + 1)
    ours = np.append(0, tokens)
    query, item = worker.query_rows(data)
    edges = np.append(0, np.cumsum(data.end - data.begin))
    if sequential:
        histories = np.zeros((len(data.targets), spec["length"]), np.int64)
        sizes = np.minimum(data.end - data.begin, spec["length"])
        for row, size, end in zip(histories, sizes, data.end, strict=True):
            row[:size] = theirs[data.log[end - size : end]]
        asked = {"item_id_list": histories, "item_length": sizes}
    else:
        users = dataset.token2id("user_id", data.query_users.astype(str))
        asked = {"user_id": np.asarray(users)}
    asked = Interaction({name: torch.from_numpy(x) for name, x in asked.items()})
    seen = torch.from_numpy(query), torch.from_numpy(theirs[item])

    @torch.no_grad()
    def evaluate():
        model.eval()
        found = []
        for start in range(0, len(data.targets), QUERIES):
            stop = min(start + QUERIES, len(data.targets))
            part = asked[start:stop].to(config["device"])
            scores = model.full_sort_predict(part).view(stop - start, -1)
            scores[:, 0] = -torch.inf
            rows = slice(edges[start], edges[stop])
            scores[seen[0][rows] - start, seen[1][rows]] = -torch.inf
            found.append(scores.topk(worker.TOP).indices.cpu())
        return ours[torch.cat(found).numpy()]

    epochs = iter(range(10**9))

    def train_epoch():
        trainer._train_epoch(loader, next(epochs))

    worker.serve(ready, data, len(train), train_epoch, evaluate)


if __name__ == "__main__":
    main()
