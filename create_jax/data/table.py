"""Any log in a file: CSV with any separator, JSON lines, Parquet; text plain, .gz or
.zst; or a folder of Parquet parts.

Files are read in blocks and ids become categories block by block, so a log needs little
more memory than its arrays. A row that cannot be read is an error: none is dropped.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple
from zipfile import BadZipFile

import polars as pl

from create_jax.data import container, times
from create_jax.data.interactions import Interactions, from_frame
from create_jax.data.parquet import check_parts, parquet_blocks
from create_jax.data.text import KEYS, Block, listed, text_blocks
from create_jax.errors import InputError, one_line

Format = Literal["auto", "csv", "jsonl", "parquet"]

DAMAGE = (EOFError, zlib.error, OSError, BadZipFile)
AHEAD = 86_400  # seconds by which the clock of another machine may be ahead
EVER = 9_200_000_000  # seconds, to 1678 and 2261: their nanoseconds fit 64 bits


class Stream(NamedTuple):
    """A log on its way from its files. blocks: frames of user and item (text), time
    (Datetime in ns, or numbers that sort: Int128, or Float64) and perhaps rating, never
    all at once. source: for messages. files: their names."""

    blocks: Iterator[pl.DataFrame]
    source: str
    files: Sequence[str]


def load(
    path: str,
    *,
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
    **form,
) -> Interactions:
    """Loads a log from a file, or from a folder of Parquet parts in the order of names.

    Args:
      k_core, drop_repeats, counts: see `from_frame`.
      form: see `stream_from`.
    """
    filters = {"k_core": k_core, "drop_repeats": drop_repeats, "counts": counts}
    return collect(stream(path, **form), **filters)


def collect(log: Stream, **filters) -> Interactions:
    """A whole log in memory; `filters` as in `from_frame`."""
    return from_frame(gather(log), source=log.source, **filters)


def stream(path: str, **form) -> Stream:
    """The same in blocks; `form` as in `stream_from`."""
    files = [Path(path)]
    if files[0].is_dir():
        files = parts(path)
        others = [part.name for part in files if not _is_parquet(part)]
        if others or not files:
            raise InputError(
                f"{path}: is a folder and holds {listed(others, 3) or 'nothing'}; "
                "expected a file, or a folder of Parquet parts alone"
            )
        check_parts(files, form["columns"])
    return stream_from({str(p): partial(p.open, "rb") for p in files}, path, **form)


def stream_from(
    files: dict[str, Callable[[], BinaryIO]],
    source: str,
    *,
    time_unit: times.Unit = "auto",
    has_clock: bool = True,
    **form,
) -> Stream:
    """The columns that `from_frame` takes from some files, in blocks.

    Args:
      files: what opens each, by its name.
      time_unit: "auto" is iso if the times are no numbers, dates if all numbers look
        like 20170820, else s, ms, us or ns by their size. ISO times without an offset
        are UTC.
      has_clock: False: times are any numbers that sort, or ISO times of 1679 to 2260.
      form:
        columns: the names, or 0-based indices, of the columns user, item, time and,
          if wanted, rating.
        separator: of csv; one character or more. "auto" is the one of `, tab ; | ::`
          that shows the columns. Quoted fields need a single character.
        format: "auto" is parquet by its magic bytes, jsonl if the text starts with
          "{", csv otherwise. The content also tells the compression.
        header: whether the first line of a csv names its columns.
        quoting: of csv; False: a quote is a character as any other.
        encoding: of text; "auto" is that of its byte order mark, or UTF-8.
    """

    def blocks():
        try:
            for name, opened in files.items():
                with opened() as file:
                    yield from _blocks(file, name, **form)
        except OSError as error:
            raise InputError(
                f"{source}: {error.strerror}; expected the file of the log: check the "
                "path"
            ) from error

    parsed = _parsed(blocks(), source, time_unit, has_clock)
    return Stream(parsed, source, list(files))


def gather(log: Stream) -> pl.DataFrame:
    """The rows of a log in memory; ids become categories block by block."""
    ids = pl.col("user", "item").cast(pl.Categorical)
    found = [block.with_columns(ids) for block in log.blocks]
    if not found:
        raise InputError(
            f"{log.source}: the log is empty; expected rows of user, item, time"
        )
    if found[0]["time"].dtype.is_temporal():
        return pl.concat(found)
    order = times.ranks([block["time"] for block in found])
    return pl.concat([block.drop("time") for block in found]).with_columns(time=order)


def parts(path: str) -> list[Path]:
    """The files of a folder in their order, subfolders included; names that begin with
    . or _ are no parts.

    Raises:
      InputError: a link to a folder, whose files would be missed.
      OSError: a subfolder that cannot be listed.
    """

    def cannot_list(error: OSError):
        raise error

    found = []
    for folder, folders, files in os.walk(path, onerror=cannot_list):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for link in filter(Path.is_symlink, (Path(folder, name) for name in folders)):
            raise InputError(
                f"{link}: is a link to a folder; expected folders of parts, and links "
                "to files alone: name the folder that it leads to, or copy its parts"
            )
        here = (Path(folder, name) for name in files if name[0] not in "._")
        found += [part for part in here if part.is_file() or part.is_symlink()]
    return sorted(found)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == container.PARQUET


def _blocks(
    file: BinaryIO,
    source: str,
    *,
    columns: dict[str, str | int],
    separator: str = "auto",
    format: Format = "auto",
    header: bool = True,
    quoting: bool = True,
    encoding: str = "auto",
) -> Iterator[Block]:
    if set(columns) - {"rating"} != set(KEYS):
        raise InputError(
            f"{source}: found columns for {', '.join(columns) or 'nothing'}; "
            "expected user, item and time: name one column of the file for each"
        )
    try:
        magic = file.read(4)
        file.seek(0)
        if format == "parquet" or (format == "auto" and magic == container.PARQUET):
            yield from parquet_blocks(file, source, columns)
        else:
            yield from text_blocks(
                container.decompress(file, source),
                source,
                columns,
                separator=_written(separator),
                format=format,
                header=header,
                quoting=quoting,
                encoding=encoding,
            )
    except DAMAGE as error:
        raise InputError(
            f"{source}: the file is cut off or damaged ({one_line(error, 150)}); "
            "expected a complete one: fetch it again"
        ) from error


def _written(separator: str) -> str:
    r"""A separator that is written as an escape, such as \t or \x01."""
    try:
        return separator.encode("latin-1").decode("unicode_escape")
    except UnicodeError:  # · or a single backslash
        return separator


def _parsed(
    blocks: Iterator[Block], source: str, unit: str, has_clock: bool
) -> Iterator[pl.DataFrame]:
    """Blocks with parsed times, of which every row is good."""
    first, last, sorted_by = 0, int(time.time()) + AHEAD, None
    if not has_clock:
        first, last = -EVER, EVER
    for raw, blame in blocks:
        written = raw["time"]
        only_sorts = written.dtype in (pl.Duration, pl.Time)
        if only_sorts and has_clock:
            raise InputError(
                f"{source}: found {written.dtype} as times; expected moments: name "
                "another column, or say that these only sort (has_clock=False)"
            )
        if unit == "auto":
            unit = times.guess_unit(written)
            if unit in ("ms", "us", "ns"):
                first = max(first, times.YEAR)  # the size cannot mean a time this early
        if not has_clock and (only_sorts or unit != "iso"):
            unit = "number"
            kind = written.dtype if written.dtype.is_temporal() else "numbers"
            sorted_by = sorted_by or kind
            if kind != sorted_by:
                raise InputError(
                    f"{source}: found {kind} as times after {sorted_by}; expected one "
                    "kind in all parts, by which they sort: cast it"
                )
            moments = times.order(written)
            known = moments.is_not_null()
        else:
            seconds, nanos = times.parse(written, unit)
            known = seconds.is_between(first, last).fill_null(False)
            moments = (seconds * times.NANO + nanos).cast(pl.Datetime("ns"))
        ids = pl.col("user", "item")
        part = raw.with_columns(ids.cast(pl.String), moments.alias("time"))
        named = (ids.str.strip_chars() != "").fill_null(False)
        good = pl.all_horizontal(named, known)
        ok = part.select(good.alias("ok"))["ok"]
        if not ok.all():
            row = ok.arg_min()
            empty = [k for k in KEYS if not _shown(raw[k], row).strip()]
            if empty:
                trouble = f"found no {empty[0]}; expected one in every row"
            else:
                second = None if unit == "number" else seconds[row]
                trouble = _complain(_shown(written, row), second, unit, first)
            raise blame(row, f"{trouble}: mend or drop it")
        if "rating" in part.columns:  # a value that is no number is missing
            rating = pl.col("rating")
            if part["rating"].dtype == pl.String:
                rating = rating.str.strip_chars()
            rating = rating.cast(pl.Float32, strict=False)
            rating = pl.when(rating.is_finite()).then(rating)
            part = part.with_columns(rating.alias("rating"))
        yield part


def _shown(column: pl.Series, row: int) -> str:
    """A value as text, "" for a missing one; a time outside all years as a number."""
    value = column[row : row + 1]
    if column.dtype.is_temporal():
        dated = column.dtype in (pl.Date, pl.Datetime)
        [second] = times.parse(value, "iso")["seconds"] if dated else [None]
        if second is None or abs(second) > EVER:
            value = value.to_physical()
    return value.cast(pl.String)[0] or ""


def _complain(written: str, second: int | None, unit: str, first: int) -> str:
    """The error message for a time of this text, which means this second."""
    written = f"time {one_line(written, 80)!r}"
    if unit == "number":
        return f"{written} does not parse; expected a number"
    if second is None:
        trouble = "does not parse"
    elif second < first < 0:
        trouble = "lies too far back"
    elif second < 0 <= first:
        trouble = "is negative" if unit in times.PER_SECOND else "lies before 1970"
    elif second < first:
        trouble = "lies in 1970 and the others do not"
    else:
        trouble = "lies in the future"
    span = "1970 to now" if first >= 0 else "1679 to 2260"
    return (
        f"{written} {trouble}; expected {times.WORDS[unit]} from {span} (or set "
        "time_unit, or has_clock=False)"
    )
