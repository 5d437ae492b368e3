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
import lzma
import sys
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from create_jax.errors import InputError, exit_code, one_line
from create_jax.files import whole, write_text

FILE = "ranks.npz"


DAMAGE = ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError


@contextmanager
def _opened(path: Path):
    """The arrays of a file; InputError where it is damaged."""
    try:
        with np.load(path) as file:
            yield file
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error, 100)}); bring it back, "
            "or run this run again"
        ) from None


def targets(folder: Path) -> list[str]:
    """The target rules that a run was tested with and has ranks of."""
    with _opened(folder / FILE) as file:
        names = [name for name in file if file[name].ndim == 1]
    return [name for name in names if not name.endswith("_users")]


def read(folder: Path, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(users, ranks) [Q] int32 of a run's test queries with a target rule.

    Raises:
      InputError: the ranks are damaged, or packed and their file of users is not
        there.
    """
    key = f"{target}_users"
    with _opened(folder / FILE) as file:
        ranks = file[target].astype(np.int32)
        if key in file:
            return file[key], ranks
        name = f"users-{file['users']}.npz"
    for place in (folder.absolute(), *folder.absolute().parents):
        if (place / name).exists():
            with _opened(place / name) as file:
                return file[key], ranks
    raise InputError(
        f"{folder / FILE}: its users are in {name}, which is neither beside it nor in "
        "a directory above; bring that file back, or run this run again"
    )


def largest(folder: Path) -> int:
    """The largest cut-off of a run: packed ranks tell nothing beyond it."""
    return max(read_json(folder / "result.json", ("protocol",))["protocol"]["ks"])


def read_json(path: Path, parts: tuple[str, ...]) -> dict:
    """A file of a run; InputError where it is none, or lacks a part."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({one_line(error, 100)}); bring it back, "
            "or leave this run out"
        ) from None
    lacks = [part for part in parts if not isinstance(found, dict) or part not in found]
    if lacks:
        raise InputError(
            f"{path}: is of no run of create_jax (it has no {lacks[0]}); bring it "
            "back, or leave its directory out"
        )
    return found


def name_of(folder: Path) -> str:
    """The name of a run: that of its directory, or `<directory above>/seed-<n>`. Packed
    ranks keep the name from when they were packed."""
    with _opened(folder / FILE) as file:
        if "name" in file:
            return str(file["name"])
    folder = folder.absolute()
    seed = folder.name.startswith("seed-")
    return f"{folder.parent.name}/{folder.name}" if seed else folder.name


def pack(folder: Path, above: Path) -> None:
    """Packs the ranks of a finished run; its users go to the directory `above`."""
    with _opened(folder / FILE) as file:
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


def shortened(path: Path) -> str:
    """The lines of a run's epochs, numbers rounded to six digits; without a last line
    that was never finished."""
    try:
        found = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        short = [
            {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in x.items()}
            for x in found
        ]
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: holds a line that is no JSON of an epoch "
            f"({one_line(error, 100)}); bring it back, or take it away"
        ) from None
    return "".join(json.dumps(line) + "\n" for line in short)


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
    epochs = {}
    for file in files:  # all can be read, or none is changed
        largest(file.parent)
        with _opened(file) as arrays:
            dict(arrays)
        if (path := file.with_name("metrics.jsonl")).exists():
            epochs[path] = shortened(path)
    for file in files:
        pack(file.parent, place)
    for path, text in epochs.items():
        write_text(path, text)


if __name__ == "__main__":
    sys.exit(main())
