"""The pure parts of the loop: when a stage validates, what is best, when it ends."""

import dataclasses
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from create_jax import feeds, parallel, train
from create_jax.errors import InputError
from create_jax.train import Progress, Stopping, after_epoch

# Two epochs of warm-up, eight of the last phase, a validation after each second epoch.
RULES = Stopping(total=10, last_from=2, every=2, patience=2, select_by="ndcg@10")


def train_through(scores: dict, rules=RULES, end_at=None) -> Progress:
    """Epochs up to the end, ten steps each; `scores` by the number of the epoch."""
    progress = Progress()
    while not progress.finished:
        epoch = progress.epoch + 1
        metrics = {}
        if rules.validates(epoch):
            metrics = {"ndcg@10": scores[epoch]}
        progress = after_epoch(progress, rules, 10 * epoch, metrics, epoch == end_at)
    return progress


def test_rows_without_a_sequence_are_refused():
    def log(*sizes):
        ends = np.cumsum(sizes)
        return SimpleNamespace(n_users=len(sizes), spans=lambda: (ends - sizes, ends))

    feeds.check_sequences(log(1, 2, 0))
    with pytest.raises(InputError, match="none of the 3 users has two training rows"):
        feeds.check_sequences(log(1, 1, 0))


@pytest.mark.parametrize(
    "scores, ended, best",
    [
        ({2: 0.9, 4: 0.1, 6: 0.2, 8: 0.3, 10: 0.4}, 10, 10),  # a warm-up never counts
        ({2: 0.9, 4: 0.5, 6: 0.2, 8: 0.3, 10: 0.9}, 8, 4),  # two validations in vain
        ({2: 0.0, 4: 0.1, 6: 0.2, 8: 0.2, 10: 0.2}, 10, 6),  # equal is not better
        ({2: 0.0, 4: 0.0, 6: 0.0, 8: 0.0, 10: 0.0}, 8, 4),  # a score of 0 is one
        ({2: -1.0, 4: -9.0, 6: -8.0, 8: -8.5, 10: -8.1}, 10, 6),  # a log-likelihood
    ],
)
def test_patience_counts_validations_of_the_last_phase(scores, ended, best):
    progress = train_through(scores)
    assert (progress.epoch, progress.best_epoch) == (ended, best)
    assert progress.best_step == 10 * best and not progress.ended_early
    assert progress.best_metrics == {"ndcg@10": progress.best_score}


def test_the_mean_of_the_newest_validations_is_compared():
    rules = RULES._replace(mean=2)
    # Means: 0.1, 0.45, 0.55, 0.3. The lucky sixth epoch is not the best.
    scores = {2: 9.0, 4: 0.1, 6: 0.8, 8: 0.3, 10: 0.3}
    progress = train_through(scores, rules)
    assert (progress.epoch, progress.best_epoch) == (10, 8)
    assert progress.best_score == pytest.approx(0.55)
    assert progress.best_metrics == {"ndcg@10": 0.3} and progress.recent == [0.3, 0.3]


def test_without_a_holdout_every_epoch_is_trained():
    progress = train_through({}, RULES._replace(every=0))
    assert progress.epoch == 10 and progress.best_epoch == 0


def test_the_last_epoch_is_validated_even_between_two():
    assert RULES._replace(total=11).validates(11)
    assert (
        train_through({2: 0, 4: 0.1, 5: 0.3}, RULES._replace(total=5)).best_epoch == 5
    )


def test_a_study_ends_a_stage():
    progress = train_through({2: 0.1, 4: 0.2, 6: 0.3}, end_at=6)
    assert progress.epoch == 6 and progress.ended_early and progress.finished


def test_progress_has_the_names_of_old_checkpoints():
    old = {
        **{
            "epoch": 3,
            "chunk": 1,
            "sums": {"loss": 0.5},
            "best_epoch": 2,
            "recent": [],
        },
        **{"best_step": 20, "best_score": 0.1, "best_metrics": {"ndcg@10": 0.1}},
        **{"finished": False, "ended_early": False},
        "seconds": {"compile": 1.0, "train": 2.0, "eval": 3.0},
    }
    progress = Progress.restored(json.loads(json.dumps(old)))
    assert dataclasses.asdict(progress) == old
    # Of a version without a field, or with one more.
    del old["ended_early"], old["recent"]
    assert Progress.restored(old | {"later": 1}) == progress


def test_a_graph_that_no_device_holds_is_refused(monkeypatch):
    mesh = parallel.make_mesh()
    graph = {"split": np.zeros((8, 100), np.float32), "whole": np.zeros(50, np.int32)}
    specs = {"split": P(parallel.DATA), "whole": P()}
    assert parallel.bytes_a_device(mesh, graph, specs) == 400 + 200
    assert parallel.memory(mesh) is None  # a CPU says nothing
    pairs = SimpleNamespace(users=np.zeros(7))
    monkeypatch.setattr(
        train.feeds, "make_graph", lambda *_: (None, pairs, np.zeros(10**6, np.float32))
    )
    run = SimpleNamespace(mesh=mesh, config=None)
    for room, fits in ((3_900_000, False), (4_000_000, True)):
        monkeypatch.setattr(parallel, "memory", lambda _, room=room: room)
        with nullcontext() if fits else pytest.raises(InputError, match="of 7 pairs"):
            train._make_graph(run, None, None)
