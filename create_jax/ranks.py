"""The ranks of a finished run's test queries, ranks.npz, whole or packed.

A run writes the whole file. For each rule with one target a query it has `<target>`
[Q], how many candidates rank before the target, and `<target>_users` [Q], the users.

A packed file, as in results/, has a tenth of the size. It gives the same metrics up to
the largest cut-off of the run; all larger ranks are one value. Runs of the same data
set and split share their users. These are stored once in `users-<their hash>.npz`,
there or in a directory above, and `users` is that hash. `name` is the name of the run
when it was packed.

  python -m create_jax.ranks DIR    packs the finished runs in DIR, and rounds the
                                    numbers of their metrics.jsonl to six digits
"""

import argparse
import hashlib
import io
import json
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from create_jax.errors import InputError, exit_code, one_line
from create_jax.files import whole, write_text

FILE = "ranks.npz"


@contextmanager
def _opened(folder: Path):
    """The ranks of a run; InputError where the file is damaged."""
    try:
        with np.load(folder / FILE) as file:
            yield file
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder / FILE}: cannot be read ({one_line(error, 100)}); bring it back, "
            "or run this run again"
        ) from None


def targets(folder: Path) -> list[str]:
    """The target rules that a run was tested with and has ranks of."""
    with _opened(folder) as file:
        names = [name for name in file if file[name].ndim == 1]
    return [name for name in names if not name.endswith("_users")]


def read(folder: Path, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(users, ranks) [Q] int32 of a run's test queries with a target rule.

    Raises:
      InputError: the ranks are damaged, or packed and their file of users is not
        there.
    """
    key = f"{target}_users"
    with _opened(folder) as file:
        ranks = file[target].astype(np.int32)
        if key in file:
            return file[key], ranks
        name = f"users-{file['users']}.npz"
    for place in (folder.absolute(), *folder.absolute().parents):
        if (place / name).exists():
            with np.load(place / name) as file:
                return file[key], ranks
    raise InputError(
        f"{folder / FILE}: its users are in {name}, which is neither beside it nor in "
        "a directory above; bring that file back, or run this run again"
    )


def largest(folder: Path) -> int:
    """The largest cut-off of a run: packed ranks tell nothing beyond it."""
    return max(json.loads((folder / "result.json").read_text())["protocol"]["ks"])


def name_of(folder: Path) -> str:
    """The name of a run: that of its directory, or `<directory above>/seed-<n>`. Packed
    ranks keep the name from when they were packed."""
    with _opened(folder) as file:
        if "name" in file:
            return str(file["name"])
    folder = folder.absolute()
    seed = folder.name.startswith("seed-")
    return f"{folder.parent.name}/{folder.name}" if seed else folder.name


def pack(folder: Path, above: Path) -> None:
    """Packs the ranks of a finished run; its users go to the directory `above`."""
    with _opened(folder) as file:
        if "users" in file:
            return
        arrays = dict(file)
    users = {key: arrays.pop(key) for key in sorted(arrays) if key.endswith("_users")}
    parts = [part for key in users for part in (key.encode(), users[key].tobytes())]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:8]
    cut = largest(folder)
    kind = np.min_scalar_type(cut)
    small = {key: np.minimum(ranks, cut).astype(kind) for key, ranks in arrays.items()}
    shared = above / f"users-{digest}.npz"
    if not shared.exists():
        _save(shared, users)
    _save(folder / FILE, small | {"users": digest, "name": name_of(folder)})


def shorten(path: Path) -> None:
    """Rounds the numbers of a run's epochs, if it has any, to six digits."""
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        short = [
            {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in x.items()}
            for x in lines
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in short))


def _save(path: Path, arrays: dict) -> None:
    """np.savez_compressed with LZMA, a tenth smaller; np.load reads it."""
    with whole(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, value in arrays.items():
            part = io.BytesIO()
            np.save(part, value)
            info = zipfile.ZipInfo(f"{key}.npy")  # no date, so equal bytes
            archive.writestr(info, part.getvalue(), zipfile.ZIP_LZMA)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        "python -m create_jax.ranks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", type=Path, metavar="DIR")
    flags = parser.parse_args(arguments)
    return exit_code(lambda: [pack_all(place) for place in flags.places])


def pack_all(place: Path) -> None:
    """Packs the ranks of all finished runs in a directory."""
    files = [
        file
        for file in sorted(place.glob(f"**/{FILE}"))
        if (file.parent / "result.json").exists()
    ]
    if not files:
        raise InputError(
            f"{place}: found no finished run; expected a directory of runs"
        )
    for file in files:
        pack(file.parent, place)
        shorten(file.parent / "metrics.jsonl")


if __name__ == "__main__":
    sys.exit(main())
