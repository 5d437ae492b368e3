"""What agreeing costs several processes, and the memory that each takes.

python -m benchmarks.processes [--processes=2] [--devices=4] --config=quickstart ...

Starts the command in several processes on this machine, each with simulated devices.
For each it prints the seconds of `train.fit`, those of them in which the process agreed
with the others (whether to save, broadcasts, barriers) or saved, and its peak memory.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CHILD = "from benchmarks.processes import measured; measured()"
MARK = "measured: "


class Seconds:
    """Of some functions in the main thread, by name, while `within` is under way."""

    def __init__(self):
        self.spent, self.within = {}, False

    def of(self, name: str, owner, attribute: str) -> None:
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            main = threading.current_thread() is threading.main_thread()
            start = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                if main and self.within:
                    passed = time.monotonic() - start
                    self.spent[name] = self.spent.get(name, 0.0) + passed

        setattr(owner, attribute, timed)

    def inside(self, name: str, owner, attribute: str) -> None:
        """Counts from here on only inside this function, and its own time."""
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            self.within, start = True, time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.within, passed = False, time.monotonic() - start
                self.spent[name] = self.spent.get(name, 0.0) + passed

        setattr(owner, attribute, timed)


def measured() -> None:
    """`create_jax.main.run`, and a last line of what it cost."""
    from orbax.checkpoint._src.multihost import multihost

    from create_jax import checkpoint, cluster, experiment, main, train

    seconds = Seconds()
    seconds.inside("fit", experiment, "fit")
    seconds.of("epochs", train, "run_epoch")
    seconds.of("agreeing", cluster, "gather")
    seconds.of("whether to save", checkpoint.Checkpoints, "due")
    seconds.of("barriers of saves", multihost, "sync_global_processes")
    seconds.of("saving", checkpoint.Checkpoints, "save")
    main.run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    spent = {name: round(value, 3) for name, value in seconds.spent.items()}
    print(MARK + json.dumps({"seconds": spent, "peak GiB": round(peak, 3)}), flush=True)


def outputs(count: int, code: list[str], flags: str = "") -> Iterator[str]:
    """What each of so many processes of one cluster on this machine says, by rank.

    Args:
      code: Python's, and its arguments. flags: of XLA.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment |= {"CREATE_JAX_COORDINATOR": address}
    environment |= {"CREATE_JAX_PROCESSES": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", *code],
            env=environment | {"CREATE_JAX_PROCESS": str(rank)},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for rank, process in enumerate(started):
        text = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"process {rank} ended with {process.returncode}")
        yield text


def read(text: str) -> dict:
    """What `measured` said at the end of an output."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    return json.loads(lines[-1].removeprefix(MARK))


def share(found: dict) -> float:
    """Of the seconds in epochs: those in which a process waited for others to agree."""
    spent = found["seconds"]
    names = ("agreeing", "whether to save", "barriers of saves")
    return sum(spent.get(name, 0.0) for name in names) / spent["epochs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4)
    own, options = parser.parse_known_args()
    flags = f"--xla_force_host_platform_device_count={own.devices}"
    texts = outputs(own.processes, [CHILD, *options], flags)
    for rank, text in enumerate(texts):
        found = read(text)
        print(f"process {rank}: {found}; agreeing takes {share(found):.1%} of epochs")


if __name__ == "__main__":
    main()
