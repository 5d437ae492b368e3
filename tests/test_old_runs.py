"""Runs of an earlier version of the package go on, are ranked again and reported.

`runs_of_0.1.0.tar.xz` was made at commit 081c0cd, before systems were dataclasses: a
small log, a finished run of CREATE on it, and the same run killed inside the first
epoch of the refit. Some checkpoints that nothing reads were removed.

    python -m create_jax.main --config=configs/table.py SETTINGS --workdir=finished
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from create_jax import config_file, experiment, report

RUNS = Path(__file__).parent / "runs_of_0.1.0.tar.xz"
SETTINGS = {
    "data.path": "log.csv",
    "split.q_val": 0.8,
    "model.dim": 8,
    "warmup.epochs": 1,
    "train.epochs": 4,
    "train.batch": 32,
    "graph.batch_size": 128,
    "seq.max_len": 16,
    "seq.blocks": 1,
    "seq.dropout": 0.0,  # else eight devices draw other numbers than the one did
    "train.chunk": 2,
    "checkpoint.seconds": 0,
    # The defaults of then, as the refusal of those of now says.
    "eval.select_by": "ndcg@10",
    "eval.select_mean": 1,
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config of these runs, in a directory with both."""
    with tarfile.open(RUNS) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return config_file.make("table", SETTINGS)


def result_of(workdir):
    return json.loads((Path(workdir) / "result.json").read_text())


def test_a_run_of_an_earlier_version_is_ranked_again(config):
    before = result_of("finished")
    config.eval.targets = ("last",)
    again = experiment.evaluate_again(config, "finished", "again")
    assert again["test"] == pytest.approx(before["test"], abs=1e-9)
    assert again["data"]["fingerprint"] == before["data"]["fingerprint"]


@pytest.mark.services  # compiles all that a run compiles
def test_a_run_of_an_earlier_version_goes_on_to_the_same_end(config, capsys):
    ended = experiment.train_and_evaluate(config, "stopped")
    assert "refit: continuing in epoch 1" in capsys.readouterr().out
    before = result_of("finished")
    assert ended["epochs"] == before["epochs"] and ended["valid"] == before["valid"]
    # Another processor rounds otherwise, and eight devices add in another order.
    with np.load("finished/ranks.npz") as old, np.load("stopped/ranks.npz") as new:
        moved = np.mean(old["last"] != new["last"])
    assert moved < 0.02, moved


def test_runs_of_an_earlier_version_are_reported(config, capsys):
    assert report.main(["finished"]) == 0
    expected = 100 * result_of("finished")["test"]["ndcg@10"]
    assert f"{expected:.2f}" in capsys.readouterr().out
