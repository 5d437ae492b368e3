"""A run's directory: opened with its data, marked, locked, and kept from other runs."""

import platform
import secrets
import subprocess
import tempfile
import time
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from create_jax import build, cluster, parallel, protocol, settings
from create_jax.data.interactions import Interactions
from create_jax.data.splits import Split
from create_jax.errors import AgreedError, InputError
from create_jax.files import is_remote, lock, whole
from create_jax.unread import unread
from create_jax.writers import JsonLines, read_json, say, warn, write_json

# Settings that may differ when a run, or a study, goes on.
FREE_TO_CHANGE = (*settings.CHANGE_NO_NUMBER, "tune.")
FREE_IN_A_STUDY = (*settings.CHANGE_NO_NUMBER, "tune.trials")
# What a directory holds once something was trained or chosen in it.
WORK = ("result.json", "metrics.jsonl", "study.log", "checkpoints/*/[0-9]*")
# The share of queries from which on a run says what is wrong with them.
NOTABLE = 0.01


class Run(NamedTuple):
    """What all stages of a run share. profile: the epoch to trace, from 1; 0 = none."""

    config: object
    workdir: Path
    mesh: object
    lines: JsonLines
    profile: int = 0


class Opened(NamedTuple):
    """A run with its data. facts: dataset, protocol and data parts of a result, and the
    versions and commit of the program. log: all rows of the split."""

    run: Run
    split: Split
    facts: dict
    log: Interactions


def locate(name: str, flag: str = "--workdir") -> Path:
    """The absolute path of a directory that a flag names: on a disk, or `gs://`.

    Raises:
      InputError: of another store, where checkpoints cannot be written.
    """
    if not is_remote(name):
        return Path(name).absolute()
    if not name.startswith("gs://"):
        raise InputError(
            f"{flag}={name}: checkpoints are written to disks and to gs:// only; name "
            "one of these, a mounted bucket for example"
        )
    path = epath.Path(name)
    try:
        path.exists()
    except ImportError as error:
        raise InputError(
            f"{flag}={name}: {error}; pip install 'create_jax[gcs]'"
        ) from None
    return path


def open_run(config, directory: Path) -> Opened:
    """The data of a run, compared with what its directory was marked with; nothing is
    written."""
    with cluster.together():
        log = protocol.load(config)
        build.check_log(config, log)
        split = protocol.make_split(config, log)
        facts = protocol.describe(config, log, split) | program()
    data = facts["data"]
    cluster.same("data", {"the fingerprint": data["fingerprint"]})
    cluster.first(lambda: refuse_other_data(directory, data))
    span = " from {} to {}".format(*data["times"]) if "times" in data else ""
    say(
        f"{facts['dataset']}, {config.method}: {data['users']:,} users, "
        f"{data['items']:,} items, {data['interactions']:,} interactions{span}; "
        f"{data['train_interactions']:,} to learn from, "
        f"{data['test_queries']:,} test queries"
    )
    warn_of_odd_times(config, data)
    warn_of_hidden_targets(config, data)
    lines = JsonLines(directory / "metrics.jsonl")
    mesh = parallel.make_mesh(build.parts_of_tables(config))
    return Opened(Run(config, directory, mesh, lines), split, facts, log)


def warn_of_odd_times(config, data: dict) -> None:
    """Numbers whose size says seconds of 1970 are more often days, dates or places."""
    own, last = config.data.table, data.get("times", ("", ""))[1]
    if (
        config.data.loader == "table"
        and own.time_unit == "auto"
        and "1970" <= last < "1971"
    ):
        warn(
            "warning: all times lie in 1970, as their size says seconds; if they are "
            "days, dates or another unit, convert them, and if they only say what came "
            "before what, add --config.data.table.has_clock=False"
        )


def warn_of_hidden_targets(config, data: dict) -> None:
    """Says that targets stand in histories that are hidden."""
    shares = {"test": "targets_in_history_share"}
    shares["validation"] = "valid_targets_in_history_share"
    high = [
        f"{data[key]:.1%} of the {part} targets"
        for part, key in shares.items()
        if data[key] > NOTABLE
    ]
    if high and config.eval.filter_seen:
        say(
            f"warning: {' and '.join(high)} stand in their own history, which is not "
            "ranked, so that no method can hit them; where users come back to items, "
            "rank these too with --config.eval.filter_seen=False"
        )


def mark(directory: Path, config, data: dict, free: tuple[str, ...]) -> None:
    """Writes into a run's directory what it is a run of, or compares with what another
    run has written since the data were loaded."""

    def compare_or_write():
        refuse_other_config(directory, config, free)
        refuse_other_data(directory, data)
        if _begun(directory) is None:
            about = {"config": config.to_dict(), "data": data["fingerprint"]}
            write_json(directory / "config.json", about)

    cluster.first(compare_or_write)


def _begun(directory: Path) -> dict | None:
    """What a directory is a run of; None as long as nothing was trained in it: then it
    may become a run of something else."""
    work = next((path for name in WORK for path in directory.glob(name)), None)
    if work is None:
        return None
    started = read_json(directory / "config.json")
    if started is None:
        raise InputError(
            f"{directory} holds {work.name} and no config.json, so that nobody knows "
            "of which config and data; bring it back or choose another --workdir"
        )
    return started


def read_result(directory: Path) -> dict | None:
    """The result of a finished run, None where there is none; an InputError for a
    result.json that is none of ours."""
    result = read_json(directory / "result.json")
    if result is None:
        return None
    needed = {"method", "protocol", "valid", "test", "epochs"}
    if not isinstance(result, dict) or not needed <= set(result):
        raise InputError(
            f"{directory / 'result.json'}: found JSON that is no result of a run; "
            "bring it back as it was, or choose another --workdir"
        )
    return result


def refuse_other_data(directory: Path, data: dict) -> None:
    """A run continues with its own data only."""
    started = _begun(directory)
    if started is not None and started["data"] != data["fingerprint"]:
        raise InputError(
            f"{directory} was trained on other data (fingerprint {started['data']}, "
            f"now {data['fingerprint']}); bring back the first or choose another "
            "--workdir"
        )


def refuse_other_config(directory: Path, config, free: tuple[str, ...]) -> None:
    """A run continues under its own config only; says what differs."""
    started = _begun(directory)
    if started is None:
        return
    old, new = (settings.of_run(c) for c in (started["config"], config.to_dict()))
    without_effect = unread(new)
    differ = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in without_effect
        and not settings.is_among(key, free)
    ]
    if differ:
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise InputError(
            f"{directory} holds a run of another config: {'; '.join(differ[:4])}"
            f"{more}; use that config again or choose another --workdir"
        )


def check(directory: Path, config, free: tuple[str, ...]) -> None:
    """Fails before any work where a run cannot be written, is one of another config, or
    lies where not all processes see it.

    Args:
      free: settings, or sections ("x."), that may differ.
    """

    def here():
        check_writable(directory)
        refuse_other_config(directory, config, free)

    cluster.first(here)
    check_shared(directory)


def check_shared(directory: Path) -> None:
    """Fails where a process does not see what process 0 writes: all save their parts of
    a checkpoint in one directory."""
    if cluster.count() == 1:
        return
    place = directory if is_remote(directory) else _existing(directory)
    seen = place / cluster.first(lambda: f".seen-{secrets.token_hex(8)}")
    try:
        cluster.first(lambda: seen.touch())
        with cluster.together():
            until = time.monotonic() + 5  # file systems over a network take a moment
            while not seen.exists():
                if time.monotonic() > until:
                    raise InputError(
                        f"--workdir {directory} is not that of process 0 but on a disk "
                        f"of {platform.node()} alone; all processes need one that they "
                        "share: a network file system, or gs://"
                    )
                time.sleep(0.1)
    finally:
        if cluster.is_first():
            seen.unlink(missing_ok=True)


def _existing(directory: Path) -> Path:
    """The nearest directory above, or this one, that is there for process 0."""
    above = [directory, *directory.parents]

    def find():
        return next(n for n, place in enumerate(above) if place.exists())

    return above[cluster.first(find)]


def check_writable(directory: Path) -> None:
    """Fails before any work if `directory`, which may not exist yet, cannot be written
    to; leaves nothing behind."""
    try:
        if is_remote(directory):
            probe = directory / f".probe-{secrets.token_hex(8)}"
            probe.write_bytes(bytes(4096))
            probe.unlink()
            return
        place = next(x for x in (directory, *directory.parents) if x.exists())
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise InputError(
            f"--workdir {directory}: {error.strerror or error}; a writable directory "
            "with free space is needed, choose another with --workdir"
        ) from None


@contextmanager
def hold(directory: Path, timeout: float = 0.0):
    """Makes a run's directory and keeps all other runs out of it, after `timeout`
    seconds at most.

    Raises:
      InputError: another process holds it; in all processes of a cluster alike.
    """
    held = None

    def take():
        nonlocal held
        directory.mkdir(parents=True, exist_ok=True)
        held = lock(directory / "lock", timeout)
        return held is not None

    free = cluster.first(take)
    if not free:
        raise AgreedError(
            f"{directory}: another process is at work here; wait until it has ended, "
            "or choose another --workdir"
        )
    with held or nullcontext():
        yield


def keep(directory: Path, result: dict, ranks: dict) -> None:
    """What a report needs; result.json comes last and says that all is there."""

    def write():
        # Never an old result beside new ranks.
        (directory / "result.json").unlink(missing_ok=True)
        with whole(directory / "ranks.npz") as file:
            np.savez_compressed(file, **ranks)
        write_json(directory / "result.json", result)

    cluster.first(write)


def program() -> dict:
    """Versions and commit, for a result; read before the work, so as not to cost it."""
    return {"versions": versions(), "git": git_commit()}


def versions() -> dict:
    """None for what is not installed, as this package where a checkout is run."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    names = ("create_jax", "jax", "flax", "optax", "jraph", "orbax-checkpoint", "numpy")
    found = {name: version(name) for name in names}
    return {"python": platform.python_version(), **found}


def git_commit() -> str | None:
    """The commit of this source tree; None where it is not a checkout, as in an
    environment inside a checkout of something else."""
    here = Path(__file__)
    command = ["git", "rev-parse", "HEAD", f"HEAD:./{here.name}"]
    try:
        done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.split()[0]
