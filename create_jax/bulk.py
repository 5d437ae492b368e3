"""Lists for all users of a log, as Parquet parts that appear whole.

The log is read once, in blocks, and its rows go to files on disk, one for each part, by
a hash of the user: whoever runs a part later, here or in another process, has the same
users in it, and memory holds one part and never the log.
"""

import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from create_jax.data import table
from create_jax.data.interactions import MISSING, NUMBER, refuse_missing
from create_jax.errors import InputError, one_line
from create_jax.files import alone, is_held, named, whole, write_text
from create_jax.recommender import Recommender

PART_ROWS = 2**18  # of the log, about, in a part
PIECE = 2**17  # rows of the log that are dealt to parts at once
CHUNK = 2048  # users whose lists are made and written at once
BYTES_A_ROW = 20  # of a text, to guess how many parts it makes


class Job(NamedTuple):
    """What is made, as far as it changes a list; written beside the parts first.

    model: hash of the artifact. log: SHA-256 of the log's bytes. form: the flags that
    say how it is read. parts: how many.
    """

    model: str
    log: str
    form: str
    k: int
    exclude: str
    allow: str
    hide_history: bool
    drop_repeats: bool
    vectors: bool
    parts: int


class Part(NamedTuple):
    """The users of a part, by their ids, and their rows, oldest first.

    users: [U] texts. codes: [R] int64, negative where the model does not know the item.
    offsets: [U + 1].
    """

    users: pl.Series
    codes: np.ndarray
    offsets: np.ndarray


def run(
    recommender: Recommender,
    blocks: Iterable[pl.DataFrame],
    job: Job,
    out: Path,
    *,
    exclude,
    allow,
    mine: tuple[int, int] = (0, 1),
) -> bool:
    """Writes the parts that are not there yet; returns whether all are there now.

    Args:
      blocks: of the log: user, item, time; not read where nothing is left to do.
      exclude, allow: codes, as in `Recommender.recommend`.
      mine: (i, n): of the parts every n-th from the i-th.

    Raises:
      InputError: `out` holds parts of another job; or the log is wrong, and `out` is
        as it was before.
    """
    with marked(job, out):
        _write_parts(recommender, blocks, job, out, exclude, allow, mine)
    return finish(recommender, job, out)


def _write_parts(recommender, blocks, job: Job, out: Path, exclude, allow, mine):
    wanted = range(mine[0], job.parts, mine[1])
    wanted = [number for number in wanted if not path_of(out, number).exists()]
    if wanted:
        with _rows(out, mine) as folder:
            rows = spill(blocks, recommender, job.parts, set(wanted), folder)
            with _bar("rank", sum(rows.values()), "rows") as bar:
                for number in wanted:
                    bar.set_postfix_str(f"part {number + 1} of {job.parts}")
                    before, path = bar.n, path_of(out, number)
                    if not path.exists():  # by a process of a share that has it too
                        part = load(folder, number, rows[number], job.drop_repeats)
                        given = recommender, job, exclude, allow
                        write(path, part, *given, bar.update)
                    bar.update(before + rows[number] - bar.n)  # and the repeats


@contextmanager
def _rows(out: Path, mine: tuple[int, int]):
    """The folder for the rows of a share; what a killed process left there goes first.

    Raises:
      InputError: another process works on the same share.
    """
    name = f"{mine[0]}-of-{mine[1]}"
    folder, mark = out / f".rows-{name}", out / f".share-{name}.lock"
    with alone(mark, f"{mark}: another process writes these parts; end that first"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def path_of(out: Path, number: int) -> Path:
    """Where a part stands."""
    return out / f"part-{number:05}.parquet"


@contextmanager
def marked(job: Job, out: Path):
    """Marks a directory as that of a job; no more, where the log is found wrong before
    anything is written.

    Raises:
      InputError: it is of another; what differs is named.
    """
    fresh = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        made = _begin(job, out)
    try:
        yield
    except Exception:
        with _alone(out):
            if made and not any((*out.glob("part-*.parquet"), *out.glob(".rows-*"))):
                (out / "job.json").unlink(missing_ok=True)
        if fresh:
            with suppress(OSError):  # there is something in it
                out.rmdir()
        raise


def _alone(out: Path):
    """Without others that begin now, perhaps another job."""
    mark = out / ".job.lock"
    held = f"{mark}: another process holds it; end that, or remove it"
    return alone(mark, held, timeout=60)


def _begin(job: Job, out: Path) -> bool:
    """Whether the job is new here."""
    path, now = out / "job.json", job._asdict()
    if not path.exists():
        if any(out.glob("part-*.parquet")):
            raise InputError(
                f"{out} holds parts and no job.json, so that nobody knows of what; "
                "choose another --out"
            )
        write_text(path, json.dumps(now, indent=1) + "\n")
        return True
    try:
        then = {"form": job.form} | json.loads(path.read_text())  # once not written
        differ = [key for key in now if then[key] != now[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(repr(error), 100)}); choose another "
            "--out"
        ) from None
    if differ:
        was = "; ".join(
            f"{key} was {one_line(then[key], 20)}, is {one_line(now[key], 20)}"
            for key in differ
        )
        raise InputError(
            f"{out} holds lists of another job: {was}; use the same again, or choose "
            "another --out"
        )
    return False


def parts_for(source: Path, out: Path, processes: int) -> int:
    """How many parts a log makes, or a directory was begun with."""
    try:
        return int(json.loads((out / "job.json").read_text())["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    rows = 0
    for file in files_of(source):
        try:
            rows += pq.ParquetFile(file).metadata.num_rows
        except (pa.ArrowException, OSError):
            rows += file.stat().st_size // BYTES_A_ROW
    return max(processes, -(-rows // PART_ROWS))


def files_of(source: Path) -> list[Path]:
    """The files of a log, in order."""
    return table.parts(str(source)) if source.is_dir() else [source]


def fingerprint(source: Path) -> str:
    """SHA-256 of the log's bytes.

    Raises:
      InputError: there is no such log.
    """
    digest = hashlib.sha256()
    try:
        for file in files_of(source):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise InputError(
            f"{source}: {error.strerror or error}; expected the log: check the path"
        ) from None
    return digest.hexdigest()


# --- rows to files, by user -----------------------------------------------------------


def spill(
    blocks: Iterable[pl.DataFrame],
    recommender: Recommender,
    parts: int,
    wanted: set[int],
    folder: Path,
) -> dict[int, int]:
    """Appends the rows of each wanted part to its file, a stream of Arrow for each
    piece of the log: parts may be more than the files that a process may hold open.
    Returns how many rows each has.

    Raises:
      InputError: the log has no row, or a word for nothing stands among users that are
        numbers.
    """
    codes = codes_of(recommender)
    rows = dict.fromkeys(wanted, 0)
    kinds = pl.Series([], dtype=pl.String)
    with named(folder), _bar("read", None, "rows") as bar:
        pieces = (piece for block in blocks for piece in block.iter_slices(PIECE))
        for piece in pieces:
            bar.update(len(piece))
            kinds = pl.concat([kinds, kinds_of(piece["user"])]).unique()
            part = parts_of(piece["user"], parts)
            frame = coded(piece, codes).with_columns(part=part)
            frame = frame.filter(pl.col("part").is_in(list(wanted)))
            for (number,), some in frame.partition_by("part", as_dict=True).items():
                table = some.drop("part").to_arrow()
                with (
                    pa.OSFile(str(folder / f"{number}.arrow"), "ab") as file,
                    pa.ipc.new_stream(file, table.schema) as writer,
                ):
                    writer.write_table(table)
                rows[number] += len(some)
    if kinds.is_empty():
        raise InputError("the log has no row; expected at least one: is it that file?")
    refuse_missing(kinds, "user", "the log")
    return rows


def kinds_of(users: pl.Series) -> pl.Series:
    """What `refuse_missing` needs of some users: a number, another id, and all words
    for nothing."""
    users = users.unique()
    missing = users.str.to_lowercase().is_in(MISSING)
    number = users.str.contains(NUMBER)
    some = users.filter(number)[:1], users.filter(~missing & ~number)[:1]
    return pl.concat([users.filter(missing), *some])


def parts_of(users: pl.Series, parts: int) -> pl.Series:
    """The part of each user: CRC-32 of its id, the same on every machine and day."""
    known = users.unique()
    number = [zlib.crc32(user.encode()) % parts for user in known]
    return users.replace_strict(known, number, return_dtype=pl.Int64)


def codes_of(recommender: Recommender) -> pl.DataFrame:
    """The code of each item, as `coded` reads them."""
    ids = recommender.artifact.ids
    return pl.DataFrame(
        {"item": list(ids)[1:], "code": np.arange(1, len(ids))},
        schema={"item": pl.String, "code": pl.Int64},
    )


def coded(block: pl.DataFrame, codes: pl.DataFrame) -> pl.DataFrame:
    """user, code and two columns that sort as time does. An unknown item keeps a number
    of its own below 0: of the same item twice in a row one is dropped."""
    frame = block.join(codes, on="item", how="left", maintain_order="left")
    unknown = -1 - (pl.col("item").hash(0) // 4).cast(pl.Int64)
    time = pl.col("time")
    if frame["time"].dtype == pl.Datetime:
        time = time.to_physical()
    return frame.select(
        "user",
        pl.coalesce("code", unknown).alias("code"),
        time.cast(pl.Float64).alias("time"),
        time.cast(pl.Int64, strict=False).alias("exact"),
    )


def load(folder: Path, number: int, rows: int, drop_repeats: bool) -> Part:
    """The rows of a part, of which `spill` has counted so many."""
    if not rows:
        empty = np.zeros(0, np.int64)
        return Part(pl.Series([], dtype=pl.String), empty, np.zeros(1, np.int64))
    pieces = []
    with pa.OSFile(str(folder / f"{number}.arrow")) as file:
        while file.tell() < file.size():
            with pa.ipc.open_stream(file) as reader:
                pieces.append(pl.from_arrow(reader.read_all()))
    return in_order(pl.concat(pieces), drop_repeats)


def in_order(frame: pl.DataFrame, drop_repeats: bool) -> Part:
    """Rows that are coded, each user's by time; of equal times in the log's order."""
    frame = frame.sort("user", "time", "exact", maintain_order=True)
    if drop_repeats:
        same = pl.col("user") == pl.col("user").shift()
        same &= pl.col("code") == pl.col("code").shift()
        frame = frame.filter(~same.fill_null(False))
    users = frame.select("user", pl.int_range(pl.len()).alias("row"))
    users = users.filter((pl.col("user") != pl.col("user").shift()).fill_null(True))
    offsets = np.append(users["row"].to_numpy(), len(frame))
    return Part(users["user"], frame["code"].to_numpy(), offsets)


# --- lists to files -------------------------------------------------------------------


def write(
    path: Path, part: Part, recommender, job: Job, exclude, allow, advance
) -> None:
    """Writes the lists, or vectors, of a part.

    Args:
      advance: told the number of rows that were read, as it goes.
    """
    writer = _Writer(recommender, job)
    without = 0
    with whole(path) as file, pq.ParquetWriter(file, writer.schema) as parquet:
        for start in range(0, len(part.users), CHUNK):
            users = part.users[start : start + CHUNK]
            ends = part.offsets[start : start + len(users) + 1]
            rows = [part.codes[a:b] for a, b in zip(ends, ends[1:], strict=False)]
            if job.vectors:
                table, unknown = writer.vectors(users, rows)
            else:
                *found, unknown = lists(recommender, users, rows, job, exclude, allow)
                table = writer.lists(users, *found)
            without += unknown
            parquet.write_table(table)
            advance(int(ends[-1] - ends[0]))
        about = {
            "users": len(part.users),
            "rows": len(part.codes),
            "rows_of_unknown_items": int((part.codes < 0).sum()),
            "users_without_known_items": without,
        }
        parquet.add_key_value_metadata({"create_jax": json.dumps(about)})


def lists(recommender, users: pl.Series, rows, job: Job, exclude, allow):
    """(items [U, k], scores [U, k], how many got the most popular items)."""
    rules = {"exclude": exclude, "allow": allow, "hide_history": job.hide_history}
    if recommender.artifact.users is None:
        items, scores = recommender.recommend(rows, job.k, **rules)
        popular = sum(not len(recommender.known(row)) for row in rows)
        return items, scores, popular
    places = [recommender.artifact.users.ids.code_of(user) for user in users]
    known = np.array([place is not None for place in places], bool)
    items = np.zeros((len(rows), job.k), np.int32)
    scores = np.zeros((len(rows), job.k), np.float32)
    here, others = np.flatnonzero(known), np.flatnonzero(~known)
    some, seen = [places[n] for n in here], [rows[n] for n in here]
    items[here], scores[here] = recommender.recommend_users(
        some, job.k, seen=seen, **rules
    )
    seen = [rows[n] for n in others]  # and get the most popular
    items[others], scores[others] = recommender.recommend(seen, job.k, **rules)
    return items, scores, len(others)


class _Writer:
    """Arrow tables of lists and of vectors. Ids are written as a dictionary of text."""

    def __init__(self, recommender: Recommender, job: Job):
        self.recommender, self.width = recommender, recommender.artifact.items.shape[1]
        text = pa.dictionary(pa.int32(), pa.string())
        if job.vectors:
            kind = pa.list_(pa.float32(), self.width)
            self.schema = pa.schema([("user", pa.string()), ("vector", kind)])
        else:
            self.schema = pa.schema(
                [("user", text), ("rank", pa.int32()), ("item", text)]
                + [("score", pa.float32())]
            )

    @cached_property
    def names(self) -> pa.Array:
        return pa.array(list(self.recommender.artifact.ids), pa.string())

    def lists(self, users: pl.Series, items, scores) -> pa.Table:
        left = items > 0
        row, place = np.nonzero(left)
        # A file has the dictionary of each chunk: not of all items.
        used, codes = np.unique(items[left], return_inverse=True)
        texts = users.to_arrow().cast(pa.string())
        columns = [
            pa.DictionaryArray.from_arrays(row.astype(np.int32), texts),
            pa.array((place + 1).astype(np.int32)),
            pa.DictionaryArray.from_arrays(
                codes.astype(np.int32), self.names.take(pa.array(used))
            ),
            pa.array(scores[left]),
        ]
        return pa.table(columns, schema=self.schema)

    def vectors(self, users: pl.Series, rows) -> tuple[pa.Table, int]:
        """Vectors of the users that have one, and how many have none."""
        made = self.recommender
        if made.artifact.users is None:
            known = np.array([len(made.known(row)) > 0 for row in rows], bool)
            vectors = made.vectors(rows)
        else:
            places = [made.artifact.users.ids.code_of(user) for user in users]
            known = np.array([place is not None for place in places], bool)
            vectors = made.artifact.users.vectors[[place or 0 for place in places]]
        flat = pa.array(np.ascontiguousarray(vectors[known]).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, self.width)
        texts = users.filter(pl.Series(known)).to_arrow().cast(pa.string())
        return pa.table([texts, column], schema=self.schema), int((~known).sum())


def finish(recommender: Recommender, job: Job, out: Path) -> bool:
    """Writes manifest.json where all parts are there; returns whether they are."""
    paths = [path_of(out, number) for number in range(job.parts)]
    if not all(path.exists() for path in paths):
        return False
    totals: dict[str, int] = {}
    for path in paths:
        try:
            about = json.loads(pq.read_metadata(path).metadata[b"create_jax"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is damaged ({one_line(error, 100)}); remove it, and the same "
                "command makes it again"
            ) from None
        for name, number in about.items():
            totals[name] = totals.get(name, 0) + number
    found = recommender.manifest
    about = {"method": found["method"], "fingerprint": found["data"]["fingerprint"]}
    about |= job._asdict() | totals
    write_text(out / "manifest.json", json.dumps(about, indent=1) + "\n")
    if not any(is_held(mark) for mark in out.glob(".share-*.lock")):
        for left in out.glob(".rows-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        for left in out.glob("part-*.part"):
            left.unlink(missing_ok=True)
    return True


def _bar(what: str, total: int | None, unit: str):
    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        unit_scale=True,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
