"""Code that all sides share: data, commands and metric. NumPy only, no JAX.

A side is a separate process, `python -m benchmarks.speed.sides.NAME SPEC.json`. It
reads one-line JSON commands from its standard input and answers each with one such
line:

* `warm`: the first epoch over all users, compilation included -> as `epoch`
* `epoch`: one more -> `seconds`, `tokens` (positions with a target)
* `evaluate`: rank all items for each query, its history hidden -> `seconds`, `ndcg`
* `memory`: the peak resident set of the process so far -> `bytes`
* `quit`

A side converts the data, in memory or in a file, before the first command. No time
includes that.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import numpy as np

from create_jax import metrics
from create_jax.data.packing import count_within

TOP = 10


class Data(NamedTuple):
    """What parent and sides share through a file.

    users, items: [R] training rows, sorted by user, oldest first. Items are
      1..n_items, and each is among the newest rows that sequence models train on.
    log, begin, end: the history of query q is `log[begin[q]:end[q]]`, not empty.
    query_users: [Q]. targets: [Q] items; 0 = an item unseen in training.
    """

    users: np.ndarray
    items: np.ndarray
    query_users: np.ndarray
    log: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    targets: np.ndarray
    n_users: int
    n_items: int


def start(*packages: str) -> tuple[dict, Data, Callable]:
    """(the parent's spec, data, ready). `ready` reports to the parent and returns the
    function that answers.

    packages: whose versions the parent is told.
    """
    began = time.monotonic()
    # From here on the libraries print to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    with np.load(spec["data"]) as file:
        data = Data(**{k: v if v.ndim else int(v) for k, v in file.items()})

    def answer(**values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def ready(**values):
        versions = {name: metadata.version(name) for name in packages}
        answer(seconds=time.monotonic() - began, versions=versions, **values)
        return answer

    return spec, data, ready


def wait(answer: Callable, data: Data, evaluate: Callable) -> None:
    """Runs commands until one asks for an epoch.

    evaluate: () -> [Q, TOP] items, best first, 0 = nothing.
    """
    for line in sys.stdin:
        command = json.loads(line)
        if command in ("warm", "epoch"):
            return
        if command == "evaluate":
            began = time.monotonic()
            top = evaluate()
            seconds = time.monotonic() - began
            answer(seconds=seconds, ndcg=ndcg(top, data.targets))
        elif command == "memory":
            answer(bytes=peak_memory())
        elif command == "quit":
            answer()
            break
    raise SystemExit


def peak_memory() -> int:
    """Bytes of this process's largest resident set.

    Linux's ru_maxrss begins with that of the process that started this one.
    """
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            (line,) = [line for line in file if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def serve(ready, data: Data, tokens: int, train_epoch: Callable, evaluate) -> None:
    """Runs commands to the end."""
    answer = ready()
    while True:
        wait(answer, data, evaluate)
        began = time.monotonic()
        train_epoch()
        answer(seconds=time.monotonic() - began, tokens=tokens)


def hooks(ready, data: Data, tokens: int, evaluate: Callable) -> dict:
    """`serve` for an endless Lightning trainer, which calls these between its epochs.

    These are functions and no object, as RecTools copies its trainer with all it holds.
    """
    answer, began = None, 0.0

    def start(trainer, module):
        nonlocal answer, began
        answer = answer or ready()
        wait(answer, data, evaluate)
        module.train()  # the evaluation changed it
        began = time.monotonic()

    def end(trainer, module):
        answer(seconds=time.monotonic() - began, tokens=tokens)

    return {"on_train_epoch_start": start, "on_train_epoch_end": end}


def ndcg(top: np.ndarray, targets: np.ndarray) -> float:
    """Mean NDCG@10; the one metric for all sides."""
    offsets = np.arange(len(targets) + 1)
    found = metrics.from_lists(np.asarray(top), targets, offsets, TOP)
    return float(found[f"ndcg@{TOP}"].mean())


def query_rows(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """(query, item) of each row of all histories, oldest first."""
    sizes = data.end - data.begin
    rows = np.repeat(data.begin, sizes) + count_within(sizes)
    return np.repeat(np.arange(len(sizes)), sizes), data.log[rows]


def newest(data: Data, n: int) -> np.ndarray:
    """[R] bool: the last n rows of each user with two or more."""
    counts = np.bincount(data.users, minlength=data.n_users)
    from_end = np.cumsum(counts)[data.users] - np.arange(len(data.users))
    return (from_end <= n) & (counts[data.users] >= 2)
