"""SIGKILL at random moments: the resumed run ends as if nothing had happened."""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import FAST

from create_jax import main, speed

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", "1"))  # the tests' share of a longer search
# Warm-up, joint training with validation, refit and test in a few seconds; a save after
# every dispatch, so that many kills fall inside one.
SETTINGS = [
    *("--config=table", "--config.split.q_val=0.8", "--config.model.dim=16"),
    *("--config.warmup.epochs=2", "--config.train.epochs=5", "--config.train.batch=32"),
    *("--config.graph.batch_size=256", "--config.seq.max_len=16"),
    *("--config.train.chunk=4", "--config.checkpoint.seconds=0"),
    "--config.seq.blocks=1",
]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """300 users, 80 items in fashion one after the other, 12 rows a user."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 12)
    times = rng.integers(0, 10**6, len(users))
    items = (times // 20_000 + rng.geometric(0.1, len(users))) % 80
    rows = zip(users, items, times, strict=True)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return path


def in_child(workdir, log, cache, options):
    """The command, with its output beside the workdir."""
    output = os.open(f"{workdir}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(ROOT)
    # All runs execute the same programs, whatever made them: compiled once, fast.
    os.environ["XLA_FLAGS"] = FAST
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    places = f"--config.data.path={log}", f"--workdir={workdir}"
    sys.argv = ["main", *SETTINGS, *places, *options]
    main.run()


@pytest.fixture(scope="module")
def start(fork, log):
    """(workdir, compilation cache, more options) -> the process of a run."""

    def begin(workdir, cache, *options):
        own = workdir, log, cache, options
        process = fork(target=in_child, args=own, daemon=True)
        process.start()
        return process, workdir

    return begin


def finish(process, workdir):
    process.join(300)
    output = Path(f"{workdir}.out").read_text()
    assert process.exitcode == 0, output
    return output


def final_state(workdir):
    stage = workdir / "checkpoints" / "refit"
    newest = max(int(p.name) for p in stage.iterdir() if p.name.isdigit())
    return ocp.StandardCheckpointer().restore(stage / str(newest) / "state")


def metrics(workdir):
    result = json.loads((workdir / "result.json").read_text())
    return {key: result[key] for key in ("valid", "test", "test_by_target", "epochs")}


def lines(workdir):
    """Of metrics.jsonl, without what a clock says: no two runs are as fast."""
    texts = (workdir / "metrics.jsonl").read_text().splitlines()
    read = map(json.loads, texts)
    return [[(k, v) for k, v in line.items() if k not in speed.KEYS] for line in read]


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b)


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """(workdir, compilation cache) of a run that nobody kills."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(*start(folder / "run", folder / "cache"))
    return folder / "run", folder / "cache"


def epochs_done(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.services  # a minute; .ci/run runs it
def test_killed_runs_end_identically(start, uninterrupted, tmp_path):
    reference, cache = uninterrupted
    moments = random.Random(os.environ.get("KILL_SEED", "0"))
    for kill in range(KILLS):
        workdir = tmp_path / str(kill)
        checkpoints = workdir / "checkpoints"
        process, _ = start(workdir, cache)
        # Anywhere from the first epoch of the warm-up to the test after the refit.
        epochs = moments.randint(1, epochs_done(reference))
        while epochs_done(workdir) < epochs and process.exitcode is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        saving = [p.name for p in checkpoints.glob("*/*") if not p.name.isdigit()]
        finished = (workdir / "result.json").exists()
        output = finish(*start(workdir, cache))
        told = [line for line in output.splitlines() if "continuing" in line]
        print(
            f"kill {kill} after {epochs} epochs of {epochs_done(reference)}: {told}, "
            f"inside a save: {saving}, finished: {finished}"
        )
        assert metrics(workdir) == metrics(reference)
        assert same(final_state(workdir), final_state(reference))
        assert lines(workdir) == lines(reference)


OTHERS = [pytest.param(epochs, marks=pytest.mark.services) for epochs in (0, 1, 9)]


@pytest.mark.parametrize("epochs", [4, *OTHERS])  # 0: while the first is compiled
def test_a_run_that_is_asked_to_leave_ends_identically(
    start, uninterrupted, tmp_path, epochs
):
    reference, cache = uninterrupted
    workdir = tmp_path / "run"
    # Nothing is saved by the clock, so that all is lost that is not saved on leaving.
    printed = Path(f"{workdir}.out")
    printed.touch()
    process, _ = start(workdir, cache, "--config.checkpoint.seconds=1000")
    while process.exitcode is None and (
        epochs_done(workdir) < epochs or "to learn from" not in printed.read_text()
    ):
        time.sleep(0.002)
    process.terminate()
    process.join(60)
    output = printed.read_text()
    assert process.exitcode == 143, output
    assert "stopped by SIGTERM; the same command goes on" in output
    assert "Traceback" not in output and not (workdir / "result.json").exists()
    output = finish(*start(workdir, cache))
    assert "continuing in epoch" in output or epochs == 0
    assert metrics(workdir) == metrics(reference)
    assert same(final_state(workdir), final_state(reference))
    assert lines(workdir) == lines(reference)


def test_a_finished_run_prints_its_result_at_once(start, uninterrupted):
    workdir, cache = uninterrupted
    before = (workdir / "result.json").read_text()
    output = finish(*start(workdir, cache))
    assert "finished run" in output and "ndcg@10" in output
    assert (workdir / "result.json").read_text() == before


DELETED = pytest.param("deleted", marks=pytest.mark.services)


@pytest.mark.parametrize("damage", ["truncated", DELETED])
def test_a_damaged_checkpoint_falls_back(start, uninterrupted, tmp_path, damage):
    reference, cache = uninterrupted
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    (workdir / "result.json").unlink()
    stage = workdir / "checkpoints" / "refit"
    newest = max(
        (p for p in stage.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    for file in (newest / "state").rglob("*"):
        if file.is_file() and damage == "deleted":
            file.unlink()
        elif file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    output = finish(*start(workdir, cache))
    assert f"checkpoint {newest} is damaged" in output
    assert newest.with_name(f"{newest.name}.damaged-1").is_dir()
    assert "refit: continuing in epoch" in output
    assert "Traceback" not in output
    assert metrics(workdir) == metrics(reference)
    assert same(final_state(workdir), final_state(reference))
