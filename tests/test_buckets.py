"""Runs in a bucket: gs:// as etils and orbax name it, over a directory of a disk."""

import json

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils

from create_jax import cluster, experiment, rundir, train, tune
from create_jax.configs import table
from create_jax.errors import InputError


class Bucket(DirFileSystem):
    """What gcsfs is for gs://; files need no directory to be made first."""

    protocol = ("gs", "gcs")
    cachable = False
    root = None

    def __init__(self, **_):
        super().__init__(self.root, LocalFileSystem(auto_mkdir=True))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket -> the directory that holds what is written there."""
    monkeypatch.setattr(Bucket, "root", str(tmp_path))
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    backend = epath.Path("gs://bucket")._backend
    backend._get_filesystem.cache_clear()

    def on_disk(url):  # TensorStore has a driver of its own
        path = f"{tmp_path}/{url.removeprefix('gs://')}"
        directory = not path.endswith("_sharding")
        return {"driver": "file", "path": f"{path}/" if directory else path}

    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", on_disk)
    flat = "is_hierarchical_namespace_enabled"
    monkeypatch.setattr(gcs_utils, flat, lambda path: False)
    yield tmp_path / "bucket"
    backend._get_filesystem.cache_clear()


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        f"{user},{(start + step) % 20},{100 * step + user}"
        for user, start in enumerate(rng.integers(0, 20, 60))
        for step in range(8)
    ]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,time", *rows]))
    config = table.get_config("sasrec")
    config.data.path = str(path)
    config.model.dim = 8
    config.seq.update(max_len=8, blocks=1)
    config.train.update(batch=32, epochs=2)
    config.eval.filter_seen = False
    config.retrain.epochs = "none"
    return config


@pytest.mark.services  # five runs
def test_a_run_in_a_bucket_is_left_and_goes_on(bucket, config, monkeypatch, capsys):
    place, disk = "gs://bucket/runs/a", bucket / "runs" / "a"
    # Asked to leave in the first validation: what was trained is saved before.
    monkeypatch.setattr(cluster, "asked_to_leave", lambda: (disk / "lock").exists())
    run_epoch = train.run_epoch

    def first(*arguments):
        ended = run_epoch(*arguments)
        monkeypatch.setattr(cluster, "asked_to_leave", lambda: True)
        return ended

    monkeypatch.setattr(train, "run_epoch", first)
    with pytest.raises(cluster.Leaving):
        experiment.train_and_evaluate(config, place)
    assert not (disk / "result.json").exists()
    assert not (disk / "metrics.jsonl").exists()
    monkeypatch.setattr(train, "run_epoch", run_epoch)
    monkeypatch.setattr(cluster, "asked_to_leave", lambda: False)

    result = experiment.train_and_evaluate(config, place)
    assert "select: continuing in epoch 1" in capsys.readouterr().out
    assert json.loads((disk / "result.json").read_text())["test"] == result["test"]
    lines = (disk / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert {"config.json", "ranks.npz", "checkpoints"} <= {
        p.name for p in disk.iterdir()
    }
    again = experiment.evaluate_again(config, place, "gs://bucket/again")
    assert again["test_by_target"] == result["test_by_target"]
    assert (bucket / "again" / "result.json").exists()
    uninterrupted = experiment.train_and_evaluate(config, "gs://bucket/runs/b", 1)
    assert list((bucket / "runs" / "b" / "profile").rglob("*.xplane.pb"))
    assert uninterrupted["test_by_target"] == result["test_by_target"]
    assert "no locks" in capsys.readouterr().err
    # A stopped writer leaves no half of an object.
    with (
        pytest.raises(ZeroDivisionError),
        rundir.whole(epath.Path(place) / "x") as file,
    ):
        file.write(b"half")
        raise ZeroDivisionError
    assert not (disk / "x").exists()
    # A damaged checkpoint is put aside there too.
    (disk / "result.json").unlink()
    newest = max((disk / "checkpoints" / "select").glob("[0-9]*"), key=lambda p: p.name)
    (newest / "progress" / "metadata").write_bytes(b"")
    experiment.train_and_evaluate(config, place)
    assert newest.with_name(f"{newest.name}.damaged-1").is_dir()


@pytest.mark.parametrize("place", ["s3://bucket/run", "az://bucket/run", "hf://x/y"])
def test_stores_without_checkpoints_are_refused(place, config):
    with pytest.raises(InputError, match="to disks and to gs:// only") as caught:
        experiment.train_and_evaluate(config, place)
    assert str(caught.value).startswith(f"--workdir={place}: ")


def test_without_gcsfs_a_bucket_is_refused(config, monkeypatch):
    def missing(path):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(epath.Path("gs://bucket")._backend, "exists", missing)
    with pytest.raises(InputError, match="pip install 'create_jax.gcs.'"):
        rundir.locate("gs://bucket/run")


def test_a_study_needs_a_disk(bucket, config):
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    with pytest.raises(InputError, match="a study is a journal"):
        tune.tune(config, "gs://bucket/study")
