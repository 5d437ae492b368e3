"""Checkpoints: what is kept, what is damage, and that damage deletes nothing."""

import json
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from create_jax import optim
from create_jax.checkpoint import Checkpoints
from create_jax.errors import StorageError

# Orbax leaves reads unfinished where a file is damaged.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def state(step):
    values = np.random.default_rng(step).normal(size=(30, 100))
    return {"step": jnp.int32(step), "table": jnp.asarray(values, jnp.float32)}


def progress(step, best=0):
    return {"epoch": step, "best_step": best, "sums": {"loss": 0.1 + step}}


@pytest.fixture
def saved(tmp_path):
    """The directory of a stage with checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "stage")
    for step in (1, 2):
        checkpoints.save(step, state(step), progress(step))
    checkpoints.close()
    return tmp_path / "stage"


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def steps(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_the_latest_two_and_the_named_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 8):
        checkpoints.save(step, state(step), progress(step, best=min(step, 3)))
    checkpoints.wait()
    assert steps(tmp_path) == [3, 6, 7]
    assert same(checkpoints.restore(3, state(0))[0], state(3))
    checkpoints.close()
    again = Checkpoints(tmp_path)
    found, about = again.restore_latest(state(0))
    assert same(found, state(7)) and about == progress(7, best=3)
    again.save(8, state(8), progress(8, best=3))
    again.wait()
    assert steps(tmp_path) == [3, 7, 8]
    again.save(9, state(9), progress(9, best=9))
    again.wait()
    assert steps(tmp_path) == [3, 8, 9]  # of 8, should 9 be damaged
    again.save(10, state(10), progress(10, best=9))
    again.close()
    assert steps(tmp_path) == [9, 10]


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def zero(file):  # what a power cut leaves
    file.write_bytes(bytes(file.stat().st_size))


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def delete(file):
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, empty, zero, flip, delete])
@pytest.mark.parametrize("part", ["state", "progress"])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(
    saved, damage, part, capsys
):
    # Of the state the file with the values, compressed without a checksum of their own.
    files = [p for p in (saved / "2" / part).rglob("*") if p.is_file()]
    data = max(files, key=lambda file: file.stat().st_size)
    damage(saved / "2" / "progress" / "metadata" if part == "progress" else data)
    before = contents(saved / "2")
    checkpoints = Checkpoints(saved)
    found, about = checkpoints.restore_latest(state(0))
    assert same(found, state(1)) and about == progress(1)
    assert f"checkpoint {saved / '2'} is damaged" in capsys.readouterr().err
    aside = contents(saved / "2.damaged-1")
    assert list(aside.values()) == list(before.values())
    # Its step is free again.
    checkpoints.save(2, state(2), progress(2))
    checkpoints.close()
    checkpoints = Checkpoints(saved)
    assert same(checkpoints.restore_latest(state(0))[0], state(2))
    checkpoints.close()
    assert contents(saved / "2.damaged-1") == aside


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no more"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 B"),
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        ValueError('UNAVAILABLE: Error reading "a/0.0": [OS error 116: Stale handle]'),
        ValueError("Requested shape: (31, 100) is not compatible with (30, 100)"),
    ],
    ids=lambda error: type(error).__name__ + str(error)[:11],
)
def test_what_is_no_damage_stops_and_changes_nothing(saved, monkeypatch, error):
    before = contents(saved)
    checkpoints = Checkpoints(saved)

    def restore(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints.manager, "restore", restore)
    with pytest.raises(StorageError, match="could not be read .*nothing was changed"):
        checkpoints.restore_latest(state(0))
    checkpoints.close()
    assert contents(saved) == before


def trained(rows, **others):
    """The state of a method with an item table of some rows, and others beside it."""
    params = {"item_table": jnp.ones((rows, 4)), **others}
    return {"params": params, "opt_state": optim.init(optax.adam(0.1), params)}


TOKEN = {"token": jnp.ones(4)}


@pytest.mark.parametrize(
    "old, new, what",
    [
        (
            trained(9),
            trained(8, **TOKEN),
            r"item_table: found \[9, 4\], expected \[8, 4\]",
        ),
        (trained(9), trained(8), r"item_table: found \[9, 4\], expected \[8, 4\]"),
        (trained(8), trained(8, **TOKEN), r"token: found none, expected \[4\]"),
        (trained(8, **TOKEN), trained(8), r"token: found \[4\], expected none"),
    ],
    ids=["row and no token", "row", "no token", "token"],
)
def test_a_checkpoint_of_another_version_of_a_method_is_no_damage(
    tmp_path, old, new, what
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, old, progress(1))
    checkpoints.wait()
    before = contents(tmp_path)
    for restore in (checkpoints.restore_latest, partial(checkpoints.restore, 1)):
        with pytest.raises(StorageError, match=f"params.{what}") as caught:
            restore(new)
        assert str(tmp_path / "1") in str(caught.value)
        assert "train again into another --workdir" in str(caught.value)
    assert same(checkpoints.restore(1, old)[0], old)
    checkpoints.close()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("names", ["*", "*.ocdbt", "_METADATA", "[_m]*"])
def test_missing_files_are_damage_or_not_missed(saved, names):
    for file in (saved / "2" / "state").rglob(names):
        if file.is_file():
            file.unlink()
    checkpoints = Checkpoints(saved)
    found, about = checkpoints.restore_latest(state(0))
    checkpoints.close()
    assert same(found, state(about["epoch"]))
    assert steps(saved) == list(range(1, about["epoch"] + 1))


def test_a_disk_that_is_away_is_no_damage(saved):
    checkpoints = Checkpoints(saved)
    saved.rename(saved.with_name("elsewhere"))
    with pytest.raises(StorageError, match="could not be read"):
        checkpoints.restore_latest(state(0))
    saved.with_name("elsewhere").rename(saved)
    assert same(checkpoints.restore_latest(state(0))[0], state(2))
    checkpoints.close()


def test_where_all_are_damaged_training_does_not_begin_anew(saved):
    for step in (1, 2):
        zero(saved / str(step) / "progress" / "metadata")
    before = contents(saved)
    checkpoints = Checkpoints(saved)
    with pytest.raises(StorageError, match="every checkpoint is damaged"):
        checkpoints.restore_latest(state(0))
    checkpoints.close()
    assert contents(saved) == before


def test_a_run_goes_on_with_the_best_of_the_checkpoint_before(tmp_path):
    """What was a new best may be none when a damaged epoch is repeated elsewhere."""
    checkpoints = Checkpoints(tmp_path)
    for step, best in ((1, 1), (4, 1), (5, 5)):
        checkpoints.save(step, state(step), progress(step, best))
    checkpoints.close()
    truncate(tmp_path / "5" / "progress" / "metadata")
    again = Checkpoints(tmp_path)
    assert again.restore_latest(state(0))[1] == progress(4, best=1)
    for step in (5, 6):
        again.save(step, state(step), progress(step, best=1))
    again.wait()
    assert same(again.restore(1, state(0))[0], state(1))
    again.close()


def test_a_damaged_or_missing_best_is_named(saved):
    zero(saved / "1" / "progress" / "metadata")
    before = contents(saved)
    checkpoints = Checkpoints(saved, read_only=True)
    with pytest.raises(StorageError, match="1: the checkpoint is damaged"):
        checkpoints.restore(1, state(0))
    with pytest.raises(StorageError, match="no checkpoint 7"):
        checkpoints.restore(7, state(0))
    assert same(checkpoints.restore(None, state(0))[0], state(2))
    checkpoints.close()
    assert contents(saved) == before


def test_a_run_from_before_best_steps_were_named(saved):
    for step, score in ((1, 0.5), (2, -1.0)):
        file = saved / str(step) / "progress" / "metadata"
        about = json.loads(file.read_text())
        del about["best_step"], about["checksum"]
        file.write_text(json.dumps(about))
        (saved / str(step) / "metrics").mkdir()
        (saved / str(step) / "metrics" / "metrics").write_text(f'{{"score": {score}}}')
    checkpoints = Checkpoints(saved)
    _, about = checkpoints.restore_latest(state(0))
    assert about == progress(2, best=1)
    checkpoints.save(3, state(3), about | {"epoch": 3})
    checkpoints.save(4, state(4), about | {"epoch": 4})
    checkpoints.close()
    assert steps(saved) == [1, 3, 4]


def test_a_disk_that_fills_in_the_background_is_named(saved):
    resource = pytest.importorskip("resource", reason="no limits on this system")
    checkpoints = Checkpoints(saved)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        checkpoints.save(3, state(3), progress(3))
        with pytest.raises(StorageError, match="could not be saved"):
            checkpoints.save(4, state(4), progress(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = Checkpoints(saved)
    assert same(again.restore_latest(state(0))[0], state(2))
    again.close()
