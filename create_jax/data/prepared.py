"""A prepared log: a folder of sorted rows of codes, for logs that no host can hold.

An engine writes `ABOUT` and Parquet (`ROWS`, `USERS`, `ITEMS`); `finish` adds the same
rows raw and, last, the manifest. docs/prepared.md is the contract.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet

from create_jax.data.interactions import Interactions, Rows
from create_jax.data.splits import place_of
from create_jax.data.stored import Stored, slices, smallest, users_of
from create_jax.errors import InputError, one_line
from create_jax.files import digest_of, named, write_text

VERSION = 1
FORMAT = "create_jax prepared log"
MANIFEST, ABOUT = "manifest.json", "about.json"
ROWS, USERS, ITEMS = "rows", "users", "items"
RAW = {"items.i32": "<i4", "times.i64": "<i8", "ratings.f32": "<f4"}
COLUMN = {"items.i32": "item", "times.i64": "time", "ratings.f32": "rating"}
OFFSETS = "offsets.i64"
TYPES = {"user": pa.int32(), "item": pa.int32(), "time": pa.int64()}
BLOCK = 1 << 20  # rows read at a time
FILE = 1 << 25  # rows of a Parquet file that is written here
Q_TEST, Q_VAL = 0.8, 0.9  # the cut that a config has by default
QUANTILES = tuple(n / 20 for n in range(21))


class About(NamedTuple):
    """What an engine knows of a log and its rows do not say.

    rows: of the files, and what became of them. per_second: units of time in a second.
    has_clock: the times say more than what came before what. sources: the files.
    """

    name: str
    engine: str
    sources: Sequence[str]
    k_core: int
    drop_repeats: bool
    per_second: int
    has_clock: bool
    rows: Rows

    def to_dict(self) -> dict:
        """As JSON has it, in `ABOUT` and in the manifest."""
        return {
            "name": self.name,
            "engine": self.engine,
            "sources": list(self.sources),
            "filters": {"k_core": self.k_core, "drop_repeats": self.drop_repeats},
            "ties": "file",
            "per_second": self.per_second,
            "has_clock": self.has_clock,
            "rows": self.rows._asdict(),
        }


# --- writing --------------------------------------------------------------------------


def write(folder: Path, log: Interactions, about: About, titles: Mapping = {}) -> dict:
    """Writes a log that is in memory into an empty folder; returns the manifest."""
    for part in (ROWS, USERS, ITEMS):
        (folder / part).mkdir()
    columns = {"user": log.users, "item": log.items, "time": log.times}
    schema = dict(TYPES)
    if log.ratings is not None:
        columns["rating"], schema["rating"] = log.ratings, pa.float32()
    n = len(log.users)
    for first in range(0, n, FILE):
        path = folder / ROWS / f"part-{first // FILE:05}.parquet"
        with (
            named(path),
            pyarrow.parquet.ParquetWriter(path, pa.schema(schema)) as file,
        ):
            for start in range(first, min(first + FILE, n), BLOCK):
                stop = min(start + BLOCK, first + FILE)
                some = {
                    name: pa.array(column[start:stop], from_pandas=True)  # NaN is null
                    for name, column in columns.items()
                }
                file.write_table(pa.table(some, pa.schema(schema)))
    names = pl.DataFrame({"id": log.user_ids})
    names.write_parquet(folder / USERS / "part-00000.parquet")
    names = pl.DataFrame({"id": log.item_ids})
    if titles:
        found = [titles.get(name) for name in log.item_ids]
        names = names.with_columns(title=pl.Series(found, dtype=pl.String))
    names.write_parquet(folder / ITEMS / "part-00000.parquet")
    write_about(folder, about)
    return finish(folder)


def write_about(folder: Path, about: About) -> None:
    write_text(folder / ABOUT, json.dumps(about.to_dict(), indent=2) + "\n")


def finish(folder: Path) -> dict:
    """Adds the raw rows and the manifest to what an engine has written.

    One pass over the rows, in memory that grows with users and items alone. The
    manifest comes last: with it the folder is whole.

    Raises:
      InputError: the rows, ids or facts are not as docs/prepared.md says.
    """
    about = _facts(_read_json(folder / ABOUT), folder / ABOUT)
    names = list(RAW) if _has_ratings(folder) else list(RAW)[:2]
    for name in RAW.keys() - names:  # of rows that were here before
        (folder / name).unlink(missing_ok=True)
    with ExitStack() as stack:
        files = {n: stack.enter_context((folder / n).open("wb")) for n in names}

        def add(first: int, block: dict) -> None:
            for name, file in files.items():
                with named(folder / name):
                    file.write(block[COLUMN[name]].astype(RAW[name], copy=False))

        offsets = _scan(folder, add)
    with named(folder / OFFSETS):
        offsets.astype("<i8", copy=False).tofile(folder / OFFSETS)
    manifest = {"format": FORMAT, "version": VERSION} | about
    manifest |= _derived(folder, offsets, about["per_second"])
    manifest["files"] = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": digest_of(folder / name),
        }
        for name in _names(folder)
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _derived(folder: Path, offsets: np.ndarray, per_second: int) -> dict:
    """What the rows say themselves: the middle of a manifest."""
    items, times, ratings = _maps(folder)
    places = [place_of(q, len(times)) for q in QUANTILES]
    (test,) = smallest(times, [place_of(Q_TEST, len(times))])
    past = sum(int((block <= test).sum()) for block in slices(times))
    (valid,) = smallest(times, [place_of(Q_VAL, past)])
    return {
        "fingerprint": _fingerprint(folder, offsets, items, times, ratings, per_second),
        "counts": {
            "users": len(offsets) - 1,
            "items": sum(len(ids) for ids in _ids(folder, ITEMS)),
            "interactions": len(items),
        },
        "has_ratings": ratings is not None,
        "quantiles": {
            f"{q:g}": time
            for q, time in zip(QUANTILES, smallest(times, places), strict=True)
        },
        "cut": {"q_test": Q_TEST, "time": test, "q_val": Q_VAL, "valid_time": valid},
    }


def _fingerprint(folder, offsets, items, times, ratings, per_second) -> str:
    """`interactions.fingerprint` of the same log, in a stream."""
    digest = hashlib.sha256()
    for start in range(0, len(items), BLOCK):
        digest.update(users_of(offsets, start, min(start + BLOCK, len(items))))
    for array in (items, times):
        for block in slices(array):
            digest.update(block)
    if per_second > 1:
        digest.update(b"%d" % per_second)
    for table in (USERS, ITEMS):
        digest.update(b"[")
        for number, ids in enumerate(_ids(folder, table)):
            digest.update(b", " if number else b"")
            digest.update(json.dumps(ids.to_list())[1:-1].encode())
        digest.update(b"]")
    if ratings is not None:
        for block in slices(ratings):
            digest.update(block)
    return digest.hexdigest()[:16]


# --- reading --------------------------------------------------------------------------


def is_prepared(path: str) -> bool:
    """Whether a path is such a folder, perhaps half-written."""
    folder = Path(path)
    tables = all((folder / name).is_dir() for name in (ROWS, USERS, ITEMS))
    return path != "" and (tables or _is_ours(folder / MANIFEST))


def _is_ours(manifest: Path) -> bool:
    """Files of that name are common."""
    try:
        return json.loads(manifest.read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(
    path: str,
    *,
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
    has_clock: bool = True,
) -> Stored:
    """The log of a prepared folder, mapped into memory.

    Args:
      k_core, drop_repeats, has_clock: must be those of the folder.
      counts: as in `from_frame`.
    """
    folder = Path(path)
    manifest = open_manifest(folder)
    asked = {"k_core": k_core, "drop_repeats": drop_repeats}
    for name, value in asked.items():
        done = manifest["filters"][name]
        if done != value and not (name == "k_core" and max(done, value) < 2):
            raise InputError(
                f"{path}: was prepared with {name}={done}, and the config asks for "
                f"{value}: set --config.data.{name}={done}, or prepare the log again"
            )
    if has_clock and not manifest["has_clock"]:
        raise InputError(
            f"{path}: was prepared with has_clock=False, its times only say what came "
            "before what: set --config.data.table.has_clock=False"
        )
    found = manifest["counts"]
    before = found["users"], found["items"], manifest["rows"]["read"]
    if len(counts) and manifest["filters"]["k_core"] < 2 and before != tuple(counts):
        raise InputError(
            f"{path}: found {before[0]:,} users, {before[1]:,} items, {before[2]:,} "
            f"interactions; expected {tuple(counts)} (data.counts): is it another log?"
        )
    items, times, ratings = _maps(folder)
    offsets = np.fromfile(folder / OFFSETS, "<i8")
    return Stored(
        items,
        times,
        ratings,
        offsets,
        sizes=np.diff(offsets),
        ids=cache(lambda table: pl.concat(list(_ids(folder, table)))),
        n_items=found["items"],
        per_second=manifest["per_second"],
        rows=Rows(**manifest["rows"]),
        fingerprint=manifest["fingerprint"],
        cuts=_cuts(manifest),
    )


def _cuts(manifest: dict) -> dict:
    """`Stored.cuts`."""
    cut = manifest["cut"]
    known = {(float(q),): time for q, time in manifest["quantiles"].items()}
    return known | {
        (cut["q_test"],): cut["time"],
        (cut["q_test"], cut["q_val"]): cut["valid_time"],
    }


def titles(path: str) -> dict[str, str]:
    """The titles of items by their external ids, where the folder has them."""
    found = {}
    for part in _parts(Path(path), ITEMS):
        frame = pl.read_parquet(part)
        if "title" in frame.columns:
            found |= dict(frame.select("id", "title").drop_nulls().iter_rows())
    return found


def open_manifest(folder: Path) -> dict:
    """The manifest of a folder whose files are there and of the sizes it promises."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a prepared log")
    path = folder / MANIFEST
    if not path.is_file():
        half = folder.name.endswith(".part") or is_prepared(str(folder))
        half = "was half-written" if half else "is no prepared log"
        raise InputError(
            f"{folder}: {half}: it has no {MANIFEST}, which comes last; make one with "
            "python -m create_jax.prepare"
        )
    manifest = _read_json(path)
    version = manifest.get("version")
    if manifest.get("format") != FORMAT or version != VERSION:
        raise InputError(
            f"{path}: found format {one_line(manifest.get('format'), 60)!r}, version "
            f"{one_line(version, 20)}; expected {FORMAT!r}, version {VERSION}: prepare "
            "the log again with this program"
        )
    _facts(manifest, path)
    for key in ("fingerprint", "counts", "has_ratings", "quantiles", "cut", "files"):
        if key not in manifest:
            raise InputError(f"{path}: found no {key!r}; prepare the log again")
    there, listed = set(_names(folder)), manifest["files"]
    if missing := sorted(listed.keys() - there):
        raise InputError(
            f"{folder}: found no {missing[0]}, which {MANIFEST} lists; bring it back, "
            "or prepare the log again"
        )
    if others := sorted(there - listed.keys()):
        raise InputError(
            f"{folder}: found {others[0]}, which {MANIFEST} does not list; is it of "
            "another log? Take it away or prepare the log again"
        )
    for name, promised in listed.items():
        size = (folder / name).stat().st_size
        if size != promised["bytes"]:
            raise InputError(
                f"{folder / name}: found {size:,} bytes; {MANIFEST} promises "
                f"{promised['bytes']:,}: it is cut off, or of another log; prepare "
                "the log again"
            )
    rows, users = manifest["counts"]["interactions"], manifest["counts"]["users"]
    sizes = {"items.i32": 4 * rows, "times.i64": 8 * rows, OFFSETS: 8 * (users + 1)}
    if manifest["has_ratings"]:
        sizes["ratings.f32"] = 4 * rows
    for name, size in sizes.items():
        if listed.get(name, {}).get("bytes") != size:
            raise InputError(
                f"{path}: promises {rows:,} interactions of {users:,} users, for which "
                f"{name} has {size:,} bytes; found "
                f"{listed.get(name, {}).get('bytes', 0):,}: prepare the log again"
            )
    return manifest


# --- checking -------------------------------------------------------------------------


def check(folder: Path) -> dict:
    """Reads a whole folder and compares it with its manifest, which it returns.

    Raises:
      InputError: the first thing that is not as docs/prepared.md says.
    """
    manifest = open_manifest(folder)
    for name, promised in manifest["files"].items():
        if digest_of(folder / name) != promised["sha256"]:
            raise InputError(
                f"{folder / name}: its content is not what {MANIFEST} was made of "
                "(sha256): it is damaged, or of another log; prepare the log again"
            )
    items, times, ratings = _maps(folder)
    raw = {"items.i32": items, "times.i64": times, "ratings.f32": ratings}

    def compare(first: int, block: dict) -> None:
        for name, array in raw.items():
            if array is None:
                continue
            column = block[COLUMN[name]].astype(RAW[name], copy=False)
            part = array[first : first + len(column)]
            if part.tobytes() != column.tobytes():
                raise InputError(
                    f"{folder / name}: rows {first + 1:,} to {first + len(column):,} "
                    f"are not those of {ROWS}/: one of them is of another log; prepare "
                    "the log again"
                )

    offsets = _scan(folder, compare)
    if not np.array_equal(offsets, np.fromfile(folder / OFFSETS, "<i8")):
        raise InputError(
            f"{folder / OFFSETS}: is not where the rows of each user in {ROWS}/ begin; "
            "prepare the log again"
        )
    for key, found in _derived(folder, offsets, manifest["per_second"]).items():
        if found != manifest[key]:
            raise InputError(
                f"{folder / MANIFEST}: promises {key} {one_line(manifest[key], 120)}; "
                f"found {one_line(found, 120)}: prepare the log again"
            )
    return manifest


def _scan(folder: Path, visit: Callable[[int, dict], None]) -> np.ndarray:
    """Visits the rows block by block, (number of the first row, columns); returns where
    each user's begin.

    Raises:
      InputError: rows that are not sorted, codes out of range, ids that are not sorted,
        or that no row has.
    """
    n_users, n_items = (_check_ids(folder, table) for table in (USERS, ITEMS))
    counts, seen = np.zeros(n_users + 1, np.int64), np.zeros(n_items + 1, bool)
    rated, first, last = _has_ratings(folder), 0, (-1, 0)
    for place, block in _blocks(folder, rated):
        users, items, times = (block[name] for name in TYPES)
        for name, codes, low, n in (
            ("user", users, 0, n_users),
            ("item", items, 1, n_items),
        ):
            bad = (codes < low) | (codes >= low + n)
            if bad.any():
                raise place(
                    int(bad.argmax()),
                    f"{name} {codes[bad.argmax()]} is out of range; expected {low} to "
                    f"{low + n - 1}, as {name}s/ has {n:,} ids",
                )
        before = np.append(last[0], users[:-1]), np.append(last[1], times[:-1])
        bad = (users < before[0]) | ((users == before[0]) & (times < before[1]))
        if bad.any():
            row = int(bad.argmax())
            raise place(
                row,
                f"user {users[row]} at {times[row]} after user {before[0][row]} at "
                f"{before[1][row]}; expected rows sorted by user and time",
            )
        last = users[-1], times[-1]
        counts[users[0] + 1 : users[-1] + 2] += np.bincount(users - users[0])
        seen[items] = True
        visit(first, block)
        first += len(users)
    if not first:
        raise InputError(f"{folder / ROWS}: found no rows; prepare the log again")
    for name, empty in ((USERS, counts[1:] == 0), (ITEMS, ~seen[1:])):
        if empty.any():
            raise InputError(
                f"{folder / name}: id number {int(empty.argmax()) + 1:,} stands in no "
                f"row of {ROWS}/; expected ids that occur: prepare the log again"
            )
    return np.cumsum(counts)


def _blocks(folder: Path, rated: bool) -> Iterator[tuple[Callable, dict]]:
    """(row, trouble) -> the error of it, and columns, of blocks of rows in order."""
    types = TYPES | ({"rating": pa.float32()} if rated else {})
    for path in _parts(folder, ROWS):
        row = 0
        with _parquet(path) as file:
            names = file.schema_arrow.names
            if sorted(names) != sorted(types):
                raise InputError(
                    f"{path}: found columns {', '.join(names)}; expected "
                    f"{', '.join(types)}: prepare the log again"
                )
            for batch in file.iter_batches(BLOCK):
                block = {n: _numbers(batch[n], t, n, path) for n, t in types.items()}
                if batch.num_rows:
                    yield partial(_trouble, path, row), block
                row += batch.num_rows


def _trouble(path: Path, first: int, row: int, text: str) -> InputError:
    return InputError(f"{path}: row {first + row + 1:,}: {text}; prepare the log again")


def _numbers(column: pa.Array, kind: pa.DataType, name: str, path: Path) -> np.ndarray:
    """A column as numbers of its type; no rating is NaN."""
    try:
        if column.null_count and name != "rating":
            raise ValueError(f"{column.null_count:,} rows have none")
        numbers = column.cast(kind).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"{path}: found values in column {name!r} that are no {kind} "
            f"({one_line(error, 120)}); prepare the log again"
        ) from error
    if name == "rating":
        return np.where(np.isnan(numbers), np.float32(np.nan), numbers)
    return numbers


def _check_ids(folder: Path, table: str) -> int:
    """How many ids a table has; raises where they are not sorted and different."""
    n, last = 0, None
    for ids in _ids(folder, table):
        some = ids if last is None else pl.concat([last, ids])
        bad = some.is_null() | (some <= some.shift(1)).fill_null(False)
        if bad.any():
            raise InputError(
                f"{folder / table}: id {one_line(some[bad.arg_max()], 60)!r} is empty, "
                "twice there or not in its place; expected different texts sorted by "
                "their bytes in UTF-8: prepare the log again"
            )
        last = ids[-1:]
        n += len(ids)
    return n


def _ids(folder: Path, table: str) -> Iterator[pl.Series]:
    """The ids of users or items in order, in blocks that are not empty."""
    for path in _parts(folder, table):
        with _parquet(path) as file:
            if "id" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise InputError(f"{path}: found columns {names}; expected id")
            for batch in file.iter_batches(BLOCK, columns=["id"]):
                if batch.num_rows:
                    yield pl.Series("id", pl.from_arrow(batch["id"]), pl.String)


def _has_ratings(folder: Path) -> bool:
    parts = _parts(folder, ROWS)
    with _parquet(parts[0]) as file:
        return "rating" in file.schema_arrow.names


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: is no whole Parquet file ({one_line(error, 120)}); prepare the "
            "log again"
        ) from error


def _parts(folder: Path, table: str) -> list[Path]:
    """The Parquet files of a table, in the order of their names."""
    found = sorted((folder / table).glob("[!._]*.parquet"))
    if not found:
        raise InputError(
            f"{folder / table}: found no Parquet files; expected those of a prepared "
            "log: prepare it again"
        )
    return found


def _names(folder: Path) -> list[str]:
    """The files whose content counts, relative to the folder."""
    parts = [p for table in (ROWS, USERS, ITEMS) for p in _parts(folder, table)]
    raw = [folder / name for name in (*RAW, OFFSETS) if (folder / name).exists()]
    return [str(path.relative_to(folder)) for path in (*parts, *raw)]


def _maps(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """items, times and ratings, mapped."""
    return tuple(
        np.asarray(np.memmap(folder / name, kind, "r"))
        if (folder / name).exists()
        else None
        for name, kind in RAW.items()
    )


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error, 120)}); expected the facts of a "
            "prepared log: prepare it again"
        ) from error
    return found


def _facts(found: dict, path: Path) -> dict:
    """Those of an engine, of the types that docs/prepared.md says."""
    like = About("", "", [], 0, True, 1, True, Rows(0, 0, 0)).to_dict()

    def differs(found, like, name):
        if type(found) is not type(like):
            return name
        if isinstance(like, dict):
            parts = (differs(found.get(k), like[k], f"{name}.{k}") for k in like)
            return next((part for part in parts if part), "")
        return ""

    for key in like:
        if wrong := differs(found.get(key), like[key], key):
            raise InputError(
                f"{path}: found {wrong} missing or of another type; expected it as in "
                "docs/prepared.md: prepare the log again"
            )
    if found["per_second"] not in (1, 10**3, 10**6, 10**9) or found["ties"] != "file":
        raise InputError(
            f"{path}: found per_second {found['per_second']} and ties "
            f"{one_line(found['ties'], 20)!r}; expected 1, 1000, 1000000 or 1000000000 "
            "and 'file'"
        )
    return {key: found[key] for key in like}
