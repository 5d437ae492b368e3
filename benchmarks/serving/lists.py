"""python -m benchmarks.serving.lists: the best 100 of 10^5 items for users of a log.

SASRec of two blocks, d 64 and 50 slots, not trained: time and memory do not ask what is
in its parameters. Each log has ten rows a user. Says users a second, of the clock and
of each second of CPU, and the peak of resident memory. The last log is done twice: the
process is killed, hard, some seconds after its first part, and the same command run
again; then every user must have one list, whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.serving import load
from create_jax import artifact, config_file
from create_jax.artifact import Artifact

DIM, ROWS, K = 64, 10, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[100_000, 300_000])
    parser.add_argument("--items", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        artifact.write(place / "model.safetensors", make(args.items))
        for users in args.users:
            make_log(place / f"{users}.parquet", users, args.items)
            measure(place, users)
        killed_and_finished(place, args.users[-1])


def make(n_items: int) -> Artifact:
    made = load.make(n_items, DIM, 0, lambda number: f"item{number + 1:07}")
    config = config_file.load("table", "sasrec").to_dict()
    more = {
        "needs": "history",
        "protocol": {"filter_seen": True},
        "data": {"fingerprint": "made"},
        "config": json.loads(json.dumps(config)),
    }
    return replace(made, manifest=made.manifest | more)


def make_log(path: Path, users: int, n_items: int) -> None:
    """Rows by time, as a log grows."""
    rng, rows = np.random.default_rng(1), users * ROWS
    items = pl.Series(rng.integers(1, n_items + 1, rows)).cast(pl.String)
    pl.DataFrame(
        {
            "user": np.tile(np.arange(users), ROWS),
            "item": "item" + items.str.zfill(7),
            "time": 1_400_000_000 + np.arange(rows),
        }
    ).write_parquet(path)


def start(place: Path, users: int, out: str) -> subprocess.Popen:
    options = [f"--log={place / f'{users}.parquet'}", f"--out={place / out}"]
    command = [sys.executable, "-m", "create_jax.recommend"]
    command += [str(place / "model.safetensors"), f"--k={K}", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def measure(place: Path, users: int) -> None:
    began, process, peak = time.monotonic(), start(place, users, f"lists-{users}"), 0
    done = 0
    while not done:
        peak = max(peak, peak_of(process.pid))
        time.sleep(0.2)
        done, status, used = os.wait4(process.pid, os.WNOHANG)
    if status:
        raise SystemExit(f"recommend ended with {status}")
    wall, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    print(
        f"{users:,} users: {wall:,.0f} s, {users / wall:,.0f} users a second; "
        f"{cpu:,.0f} s of CPU, {users / cpu:,.0f} users a second of it; "
        f"{peak / 1024:,.0f} MB at most"
    )


def peak_of(pid: int) -> int:
    """Its peak so far in KiB, by Linux; `ru_maxrss` may be that of its parent."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return max((int(x.split()[1]) for x in status if x.startswith("VmHWM")), default=0)


def killed_and_finished(place: Path, users: int) -> None:
    process, out = start(place, users, "killed"), place / "killed"
    while not list(out.glob("part-*.parquet")) and process.poll() is None:
        time.sleep(0.5)
    time.sleep(5)
    process.kill()
    process.wait()
    there = sorted(path.name for path in out.iterdir())
    if start(place, users, "killed").wait():
        raise SystemExit("the second process failed")
    lists = pl.scan_parquet(out / "part-*.parquet").group_by("user")
    found = lists.agg(pl.len(), pl.col("rank", "item").n_unique())
    found = found.collect(engine="streaming")
    whole = found.filter(pl.all_horizontal(pl.col("len", "rank", "item") == K))
    print(
        f"killed with {there}; then finished: {len(found):,} users, {len(whole):,} "
        f"with {K} different items at {K} different ranks"
    )


if __name__ == "__main__":
    main()
