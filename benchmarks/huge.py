"""Logs that no host can hold: seconds and memory of preparing one and of training.

python -m benchmarks.huge make log.parquet --rows=100000000 --users=10000000 \
  --items=1000000
python -m benchmarks.huge prepare log.parquet DIR --engine=duckdb --memory=6GB
python -m benchmarks.huge train DIR --minutes=5

`make` writes a made-up log in the order of time. `prepare` and `train` print the
seconds, the seconds of all processors and the peak of the resident memory, mapped pages
included, of the process and those that it starts.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet

BLOCK = 1 << 20  # rows made at a time
COLUMNS = {"user": "uid", "item": "item_id", "time": "timestamp"}


def make(path: str, rows: int, users: int, items: int) -> None:
    """Active and idle users, popular and rare items, 33 rows a second."""
    file, rng = None, np.random.default_rng(0)
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        user = np.minimum(users * rng.random(n) ** 1.5, users - 1)
        item = np.minimum(items * rng.random(n) ** 3, items - 1)
        times = 10**9 + (start + np.arange(n)) * 3 // 100
        block = {"uid": user.astype(np.int64), "timestamp": times}
        block["item_id"] = item.astype(np.int64)
        table = pl.DataFrame(block).to_arrow()
        file = file or pyarrow.parquet.ParquetWriter(path, table.schema)
        file.write_table(table)
    file.close()


def prepare(path: str, out: str, engine: str, memory: str) -> dict:
    """The command of an engine, measured from outside."""
    columns = [f"--config.data.table.columns.{k}={v}" for k, v in COLUMNS.items()]
    command = [sys.executable, "-m", "create_jax.prepare", "--config=table"]
    command += [f"--config.data.path={path}", f"--out={out}", f"--engine={engine}"]
    command += [*columns, f"--memory={memory}", "--config.data.table.time_unit=s"]
    if engine == "spark":
        job = Path(__file__).parents[1] / "launch/prepare_spark.py"
        columns = [x for k, v in COLUMNS.items() for x in (f"--{k}", v)]
        command = [sys.executable, str(job), "--input", path, "--out", out]
        command += ["--format", "parquet", *columns]
        most = memory.lower().removesuffix("b")  # 4GB is 4g there
        arguments = f"--driver-memory {most} --conf spark.ui.enabled=false"
        os.environ["PYSPARK_SUBMIT_ARGS"] = f"{arguments} pyspark-shell"
    start = time.monotonic()
    process, java = subprocess.Popen(command), {}
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        time.sleep(0.5)
        java |= of_java(process.pid)
    _, status, used = ended
    if status:
        sys.exit(f"{engine} ended with status {status}")
    return {"engine": engine} | costs(start, used) | java


def of_java(parent: int) -> dict:
    """What the Java of a process has used so far: nobody waits for it, so that it is in
    no count of its parent; {} where there is none."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, fields = (place / "stat").read_text().rsplit(")", 1)
            peak = re.search(r"VmHWM:\s+(\d+)", (place / "status").read_text())
        except OSError:  # it has ended since
            continue
        fields = fields.split()
        if peak and name.endswith("(java") and int(fields[1]) == parent:
            spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return {
                "Java's processor seconds": round(spent, 1),
                "Java's peak GiB": round(int(peak[1]) / 2**20, 2),
            }
    return {}


def costs(start: float, used) -> dict:
    return {
        "seconds": round(time.monotonic() - start, 1),
        "processor seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak GiB": round(used.ru_maxrss / 2**20, 2),
    }


def train(folder: str, minutes: float, queries: int) -> dict:
    """SASRec with sampled softmax from a prepared log, stopped after some minutes."""
    from benchmarks.processes import Seconds
    from create_jax import build, cluster, config_file, feeds, rundir, train

    changes = {
        "data.path": folder,
        "eval.queries": queries,
        "eval.targets": ("last",),
        "loss.local": "sampled",
        "seq.max_len": 32,
        "train.batch": 1024,
        "train.epochs": 1,
        "train.chunk": 8,
        "checkpoint.seconds": 3600,
    }
    config, start = config_file.make("table:sasrec", changes), time.monotonic()
    build.check(config)
    steps, fed, seconds = [], [], Seconds()
    with tempfile.TemporaryDirectory() as directory:
        opened = rundir.open_run(config, Path(directory))
        opening = costs(start, resource.getrusage(resource.RUSAGE_SELF))
        seconds.inside("epoch", train, "run_epoch")
        seconds.of("filling", feeds.Feed, "batch")
        seconds.of("waiting for the device", train, "_settle")
        dispatch = train._settle
        stop = []

        def settle(*args):
            steps.append(time.monotonic())
            fed[:] = [args[-1].feed]
            stop[:] = stop or [time.monotonic() + 60 * minutes]
            return dispatch(*args)

        train._settle = settle
        cluster.asked_to_leave = lambda: bool(stop) and time.monotonic() > stop[0]
        phases, split = build.make_phases(config), opened.split
        with contextlib.suppress(cluster.Leaving):
            train.fit(opened.run, "select", phases, split.train, split.valid)
    used = resource.getrusage(resource.RUSAGE_SELF)
    passed = steps[-1] - steps[0]
    return {
        "rows": opened.log.n_rows,
        "to open": opening,
        "dispatches": len(steps) - 1,
        "seconds a dispatch": round(passed / max(1, len(steps) - 1), 3),
        **of_steps(*fed),
        "of these": {k: round(v, 1) for k, v in seconds.spent.items()},
        **costs(start, used),
    }


def of_steps(feed) -> dict:
    """What a dispatch of a feed really holds: the settings only bound it."""
    users = len(feed.sequences.owners) / feed.steps
    return {"steps a dispatch": feed.chunk_steps, "users a step": round(users)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "prepare", "train"))
    parser.add_argument("path")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--users", type=int, default=10**6)
    parser.add_argument("--items", type=int, default=10**6)
    parser.add_argument("--engine", default="duckdb")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--queries", type=int, default=2000)
    args = parser.parse_args()
    if args.what == "make":
        make(args.path, args.rows, args.users, args.items)
    elif args.what == "prepare":
        print(json.dumps(prepare(args.path, args.out, args.engine, args.memory)))
    else:
        print(json.dumps(train(args.path, args.minutes, args.queries), indent=2))


if __name__ == "__main__":
    main()
