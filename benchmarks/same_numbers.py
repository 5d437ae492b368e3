"""Whether two checkouts give the same numbers, on one machine.

python -m benchmarks.same_numbers OLD NEW [--beauty=FILE] [--methods=A,B]

OLD and NEW are directories with the package. Both run the command line of a user: every
method for a few epochs on the quick start's data (some 30 steps), and with --beauty
three methods on Amazon Beauty. Compared are the parameters of the last checkpoint to
the bit, and the metrics of result.json. Exits with 1 where any differ. Beside that it
prints how long NEW compiled and trained, as a multiple of OLD: medians of --repeat
runs, which take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from create_jax.methods import METHODS

QUICK = ("compare=()", "example=False", "train.epochs=2")
BEAUTY = ("create", "sasrec", "lightgcn")
READ = """
import sys, numpy, orbax.checkpoint as ocp, jax
from pathlib import Path
found = {}
for stage in sorted(Path(sys.argv[1]).glob("checkpoints/*")):
    steps = [int(path.name) for path in stage.iterdir() if path.name.isdigit()]
    if steps:
        place = (stage / str(max(steps)) / "state").absolute()
        state = ocp.StandardCheckpointer().restore(place)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            found[stage.name + jax.tree_util.keystr(path)] = numpy.asarray(leaf)
numpy.savez(sys.argv[2], **found)
"""


def run(checkout: Path, name: str, changes, devices: int, folder: Path):
    """(parameters and optimizer, metrics of all targets, seconds) of one run."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"PYTHONPATH": str(checkout), "XLA_FLAGS": flags}
    options = [f"--config.{change}" for change in changes]
    config = f"--config={checkout}/configs/{name.split(':')[0]}.py:{name.split(':')[1]}"
    command = [sys.executable, "-m", "create_jax.main", config, *options]
    subprocess.run(
        [*command, f"--workdir={folder / 'run'}"],
        cwd=checkout,
        env=environment,
        check=True,
        capture_output=True,
    )
    result = json.loads((folder / "run" / "result.json").read_text())
    arrays = folder / "arrays.npz"
    command = [sys.executable, "-c", READ, str(folder / "run"), str(arrays)]
    subprocess.run(command, env=environment, check=True)  # orbax wants these devices
    with np.load(arrays) as file:
        return dict(file), result["test_by_target"], result["seconds"]


def differences(old, new) -> list[str]:
    """What is not equal, the names first."""
    (old_arrays, old_metrics, _), (new_arrays, new_metrics, _) = old, new
    found = [f"only in one: {k}" for k in sorted(old_arrays.keys() ^ new_arrays.keys())]
    for key in sorted(old_arrays.keys() & new_arrays.keys()):
        a, b = old_arrays[key], new_arrays[key]
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{key}: {a.dtype}{a.shape}, {b.dtype}{b.shape}")
        elif a.tobytes() != b.tobytes():
            found.append(f"{key}: up to {np.abs(a - b).max():.3g}")
    for target, metrics in old_metrics.items():
        for name, value in metrics.items():
            other = new_metrics.get(target, {}).get(name)
            if other != value:
                found.append(f"{target} {name}: {value} and {other}")
    return found


def ratio(runs: list[tuple], name: str) -> str:
    """Median seconds of the new runs over those of the old ones. runs: pairs."""
    old, new = (np.median([run[side][2][name] for run in runs]) for side in (0, 1))
    return f"{name} {new / old:.2f}" if old else f"{name} none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--beauty", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--devices", default="1,8")
    parser.add_argument("--repeat", type=int, default=1)
    flags = parser.parse_args()
    cases = [  # others begin without a warm-up, or have none
        (f"quickstart:{m}", (*QUICK, "warmup.epochs=1") if "create" in m else QUICK)
        for m in flags.methods.split(",")
    ]
    if flags.beauty:
        path = f"data.path={flags.beauty.absolute()}"
        short = ("split.validation=none", "warmup.epochs=1", "train.epochs=1", path)
        cases += [(f"beauty:{method}", short) for method in BEAUTY]
    differ = False
    for name, changes in cases:
        for devices in map(int, flags.devices.split(",")):
            runs = []
            for _ in range(flags.repeat):
                both = []
                for checkout in (flags.old.absolute(), flags.new.absolute()):
                    with tempfile.TemporaryDirectory() as folder:
                        both.append(run(checkout, name, changes, devices, Path(folder)))
                runs.append(both)
            found = differences(*runs[0])
            differ |= bool(found)
            said = f"{len(found)} differ, {'; '.join(found[:3])}" if found else "equal"
            times = ", ".join(ratio(runs, part) for part in ("compile", "train"))
            print(f"{name}, {devices} device(s): {said}; new / old {times}", flush=True)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
