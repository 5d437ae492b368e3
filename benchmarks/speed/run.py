"""create_jax beside PyTorch libraries, timed in one run.

python -m benchmarks.speed.run --peers=rectools,replay,recbole --data=beauty,ml1m

Installs nothing: see the extra `bench`. The files are given with --beauty=FILE and
--ml1m=FILE or lie where `create_jax.fetch` puts them. For a peer in another
environment: --python=recbole=/path/to/its/python. To skip a slow one:
--skip=recbole:ml1m.

All sides train on the same rows up to the global cut. They rank the same items for the
same queries (the last held-out row of each user). Each side is a separate process that
builds its model once. The sides warm up one after the other, then take turns: an epoch
each, `--repetitions` times, then an evaluation each, as often. Nothing else runs
meanwhile. Writes tables in Markdown and everything measured in JSON beside them. With
--scaling=ROWS it goes on with `benchmarks.speed.scaling` up to so many rows.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.speed import scaling, tables
from benchmarks.speed.sides import worker
from create_jax import config_file, protocol
from create_jax.data import splits
from create_jax.data.interactions import take
from create_jax.errors import InputError

DATA = ("beauty", "ml1m", "quickstart")
# Where the step of CREATE is compared with that of SASRec.
CREATE_ON = ("beauty", "quickstart")
SIDES = {  # of a peer
    "rectools": ("rectools", "rectools-best"),
    "replay": ("replay", "replay-best"),
    "recbole": ("recbole", "recbole-lightgcn"),
}
NEEDS = {
    "rectools": ("rectools", "torch", "pytorch_lightning"),
    "replay": ("replay", "torch", "lightning"),
    "recbole": ("recbole", "torch", "polars"),
}
INSTALL = {
    "rectools": "pip install 'create_jax[bench]'",
    "replay": "pip install 'create_jax[bench]'",
    "recbole": "pip install recbole==1.2.1 polars, best into an environment of its "
    "own, and say --python=recbole=PYTHON",
}
SETTINGS = {  # of all sides, beside dropout, length and batch of configs/
    **dict(dim=64, blocks=2, heads=1, lr=1e-3, b2=0.98, seed=0),
    **dict(layers=3, pairs=2048),  # of LightGCN
}


# --- data -----------------------------------------------------------------------------


def prepare(config, split: splits.Split) -> tuple[dict, dict]:
    """(the fields of worker.Data, facts for the report).

    Items are renumbered: only items that sequence models train on are kept. These are
    in the newest max_len + 1 rows of each user with two or more. So all sides have the
    same softmax and rank the same items; RecTools would otherwise lack some.
    """
    log, holdout = split.refit, split.test["last"]
    newest = worker.newest(log, config.seq.max_len + 1)
    known = splits.known_items(take(log, newest))
    number = np.cumsum(known) * known
    rows = take(log, known[log.items])

    kept = known[holdout.log]
    before = np.append(0, np.cumsum(kept))
    begin, end = before[holdout.begin], before[holdout.end]
    asked = end > begin
    fields = {
        "users": rows.users,
        "items": number[rows.items].astype(np.int32),
        "query_users": holdout.users[asked],
        "log": number[holdout.log[kept]].astype(np.int32),
        "begin": begin[asked],
        "end": end[asked],
        "targets": number[holdout.targets[asked]],
        "n_users": log.n_users,
        "n_items": known.sum(),
    }
    facts = {
        "users": len(np.unique(rows.users)),
        "items": int(known.sum()),
        "rows": len(rows.users),
        "targets": int(newest.sum() - len(np.unique(log.users[newest]))),
        "queries": int(asked.sum()),
        "unknown_targets": int((fields["targets"] == 0).sum()),
    }
    return fields, facts


# --- sides ----------------------------------------------------------------------------


def sides_of(name: str, flags) -> list[str]:
    """The sides that run on a data set, ours first."""
    sides = ["ours", *(side for peer in flags.peers for side in SIDES[peer])]
    if "recbole" in flags.peers:
        sides.insert(1, "ours-lightgcn")
    if name in CREATE_ON:
        sides += ["ours-create", "ours-create-lightgcn"]
    return [side for side in sides if f"{side}:{name}" not in flags.skip]


def start(side: str, spec: dict, folder: Path, flags):
    """A process that is ready, and its first answer."""
    module, own = side.split("-")[0], folder / side
    own.mkdir()
    spec = spec | {"side": side, "folder": str(own)}
    (own / "spec.json").write_text(json.dumps(spec))
    command = [flags.python[module], "-m", f"benchmarks.speed.sides.{module}"]
    process = subprocess.Popen(
        [*command, str(own / "spec.json")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": str(spec["threads"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(own / "errors").open("w"),
        text=True,
    )
    return process, answer(side, process, own)


def answer(side: str, process, own: Path) -> dict:
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        last = "\n".join((own / "errors").read_text().splitlines()[-20:])
        raise InputError(f"{side} ended with code {code}:\n{last}")
    return json.loads(line)


def measure(sides: list[str], spec: dict, folder: Path, flags) -> dict:
    """side -> all its answers."""
    processes, found = {}, {}

    def ask(side, command):
        process = processes[side]
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        reply = answer(side, process, folder / side)
        shown = "  ".join(f"{name} {value:,.4g}" for name, value in reply.items())
        print(f"{side:>20} {command:>8}  {shown}", flush=True)
        return reply

    try:
        for side in sides:
            processes[side], ready = start(side, spec, folder, flags)
            found[side] = {"ready": ready, "warm": ask(side, "warm")}
            found[side] |= {"first_evaluation": ask(side, "evaluate")}
            found[side] |= {"epochs": [], "evaluations": []}
        for command, name in (("epoch", "epochs"), ("evaluate", "evaluations")):
            for _ in range(flags.repetitions):
                for side in sides:
                    found[side][name].append(ask(side, command))
        for side in sides:
            found[side]["memory"] = ask(side, "memory")
            ask(side, "quit")
            processes[side].wait()
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
    return found


# --- surroundings ---------------------------------------------------------------------


def machine(cores: int) -> dict:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1] for line in file if "model name" in line]
        cpu = names[0].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory / 2**30, 1)}


def commit() -> str:
    """The commit of this tree, `+` where it has changes."""

    def git(*words):
        command = ["git", *words]
        here = Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout

    found = git("rev-parse", "HEAD").strip()
    changed = git("status", "--porcelain", "--untracked-files=no").strip()
    return (found or "unknown") + ("+" if changed else "")


def missing(peer: str, python: str) -> list[str]:
    """The packages of a peer that its Python does not find."""
    code = (
        "import importlib.util as u, sys; "
        "print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    )
    command = [python, "-c", code, *NEEDS[peer]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [python]
    return done.stdout.split()


def make_flags(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def names(text):
        return [name for name in text.split(",") if name]

    parser.add_argument("--peers", type=names, default=list(SIDES))
    parser.add_argument("--data", type=names, default=["beauty", "ml1m"])
    parser.add_argument("--repetitions", type=int, default=3)
    for name in DATA[:2]:
        parser.add_argument(f"--{name}", default="", metavar="FILE")
    parser.add_argument("--skip", type=names, default=[], help="SIDE:DATA,...")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument(
        "--scaling", type=float, default=0, metavar="ROWS", help="and synthetic logs"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/RESULTS.md"))
    flags = parser.parse_args(arguments)
    for name, allowed in (("peers", SIDES), ("data", DATA)):
        for value in getattr(flags, name):
            if value not in allowed:
                parser.error(f"--{name}: {value!r} is none of {', '.join(allowed)}")
    if flags.repetitions < 1:
        parser.error("--repetitions: 1 or more")
    pythons = dict.fromkeys(("ours", *SIDES), sys.executable)
    for text in flags.python:
        peer, _, python = text.partition("=")
        if peer not in SIDES or not python:
            parser.error(f"--python: {text!r} is not PEER=PYTHON")
        pythons[peer] = python
    flags.python = pythons
    return flags


def write(result: dict, out: Path) -> str:
    """JSON, and the report beside it, which is returned."""
    text = tables.report(result)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.write_text(text)
    return text


def main(arguments=None) -> int:
    flags = make_flags(arguments)
    for peer in flags.peers:
        absent = missing(peer, flags.python[peer])
        if absent:
            print(f"{peer}: found no {', '.join(absent)}; {INSTALL[peer]}")
            return 2
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # taskset may hide some cores
        cores = len(os.sched_getaffinity(0))
    words = sys.argv[1:] if arguments is None else arguments
    result = {
        "command": "python -m benchmarks.speed.run " + shlex.join(words),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "machine": machine(cores),
        "settings": SETTINGS,
        "repetitions": flags.repetitions,
        "data": {},
    }
    for name in flags.data:
        config = config_file.load(name, "sasrec")
        config.data.path = getattr(flags, name, "")
        config.split.validation = "none"
        config.eval.update(cold_items="drop", candidates="train")  # as the peers
        try:
            split = protocol.make_split(config, protocol.load(config))
            own = dict(
                dropout=config.seq.dropout,
                length=config.seq.max_len,
                batch=config.train.batch,
            )
            with tempfile.TemporaryDirectory() as directory:
                folder = Path(directory)
                fields, facts = prepare(config, split)
                np.savez(folder / "data.npz", **fields)
                print(f"{name}: {facts}", flush=True)
                spec = SETTINGS | own | {"threads": cores}
                spec["data"] = str(folder / "data.npz")
                found = measure(sides_of(name, flags), spec, folder, flags)
        except InputError as error:
            print(error)
            return 2
        result["data"][name] = {"facts": facts, "settings": own, "sides": found}
        write(result, flags.out)  # each time, so a long run keeps its results
    if flags.scaling:
        out = flags.out.with_name("scaling")
        result["scaling"] = scaling.measure(int(flags.scaling), out)
    print("\n" + write(result, flags.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
