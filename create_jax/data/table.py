"""Any log in a file: CSV with any separator, JSON lines, Parquet; plain, .gz or .zst.

Text is read in blocks of whole records and ids become categories block by block, so a
log needs little more memory than its arrays. A record that does not parse is looked up
only then, to name its line.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import BinaryIO, Literal
from zipfile import BadZipFile

import polars as pl

from create_jax.data.interactions import Interactions, from_frame
from create_jax.data.text import (
    KEYS,
    Block,
    decompress,
    one_line,
    pick_columns,
    text_blocks,
)
from create_jax.errors import InputError

Format = Literal["auto", "csv", "jsonl", "parquet"]
TimeUnit = Literal["auto", "s", "ms", "iso"]

BLOCK_ROWS = 1 << 20  # rows of Parquet parsed at a time
DAMAGE = (EOFError, zlib.error, OSError, BadZipFile)


def load(
    path: str,
    *,
    columns: dict[str, str | int],
    separator: str = ",",
    format: Format = "auto",
    header: bool = True,
    time_unit: TimeUnit = "auto",
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
) -> Interactions:
    """Loads a log from a file.

    Args:
      path: the file; its content, not its name, tells compression and format.
      columns: the names, or 0-based indices, of the columns user, item, time and,
        if wanted, rating.
      separator: of csv; one character or more. Quoted fields need a single character.
      format: "auto" is parquet by its magic bytes, jsonl if the text starts with "{",
        csv otherwise.
      header: whether the first line of a csv names its columns.
      time_unit: "auto" is iso if the times are no numbers, ms if they exceed 1e11, s
        otherwise. ISO times without an offset are UTC.
      k_core, drop_repeats, counts: see `from_frame`.
    """
    try:
        with open(path, "rb") as file:
            frame = read(
                file,
                path,
                columns=columns,
                separator=separator,
                format=format,
                header=header,
                time_unit=time_unit,
            )
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; expected the file of the log: check the path"
        ) from error
    return from_frame(
        frame, source=path, k_core=k_core, drop_repeats=drop_repeats, counts=counts
    )


def read(
    file: BinaryIO,
    source: str,
    *,
    columns: dict[str, str | int],
    separator: str = ",",
    format: Format = "auto",
    header: bool = True,
    time_unit: TimeUnit = "auto",
) -> pl.DataFrame:
    """Reads user, item (categories), time (seconds) and perhaps rating (float32) from
    an open file; see `load`."""
    if set(columns) - {"rating"} != set(KEYS):
        raise InputError(
            f"{source}: found columns for {', '.join(columns) or 'nothing'}; "
            "expected user, item and time: name one column of the file for each"
        )
    try:
        magic = file.read(4)
        file.seek(0)
        if format == "parquet" or (format == "auto" and magic == b"PAR1"):
            blocks = _parquet_blocks(file, source, columns)
        else:
            chunks = decompress(file, magic)
            blocks = text_blocks(chunks, source, columns, separator, format, header)
        return _combine(blocks, source, time_unit)
    except DAMAGE as error:
        raise InputError(
            f"{source}: the file is cut off or damaged ({one_line(error)}); "
            "expected a complete one: fetch it again"
        ) from error


def _combine(blocks: Iterator[Block], source: str, unit: TimeUnit) -> pl.DataFrame:
    now = int(time.time())
    id_columns = pl.col("user", "item")
    good = pl.all_horizontal(
        (id_columns != "").fill_null(False),
        pl.col("time").is_between(0, now + 86_400).fill_null(False),
    )
    parts = []
    for raw, blame in blocks:
        if unit == "auto":
            unit = _guess_unit(raw["time"])
        part = raw.with_columns(
            id_columns.cast(pl.String), _seconds(raw["time"], unit).alias("time")
        )
        ok = part.select(good.alias("ok"))["ok"]
        if not ok.all():
            row = ok.arg_min()
            found = part.select(KEYS).row(row)
            raise blame(row, _complain(found, raw["time"][row], unit))
        if "rating" in part.columns:  # one that is no number is a missing one
            rating = pl.col("rating").cast(pl.Float32, strict=False)
            rating = pl.when(rating.is_finite()).then(rating)
            part = part.with_columns(rating.alias("rating"))
        parts.append(part.with_columns(id_columns.cast(pl.Categorical)))
    if not parts:
        raise InputError(
            f"{source}: the log is empty; expected rows of user, item, time"
        )
    return pl.concat(parts)


def _complain(row: tuple, written: object, unit: TimeUnit) -> str:
    """Says what is wrong with (user, item, seconds), its time `written` so."""
    user, item, seconds = row
    for key, value in zip(KEYS, (user, item, written), strict=True):
        if value in (None, ""):
            return f"found no {key}; expected one in every row: mend or drop it"
    if seconds is None:
        trouble = "does not parse"
    else:
        trouble = "is negative" if seconds < 0 else "lies in the future"
    expected = {"iso": "an ISO date", "ms": "milliseconds", "s": "seconds"}[unit]
    return (
        f"time {str(written)!r} {trouble}; expected {expected} from 1970 to now: "
        "mend or drop the row, or set time_unit"
    )


def _guess_unit(times: pl.Series) -> TimeUnit:
    if times.dtype.is_temporal():
        return "iso"
    numbers = times.cast(pl.Float64, strict=False).drop_nulls()
    if numbers.is_empty():
        return "iso"
    return "ms" if numbers.median() > 1e11 else "s"  # 1e11 s is the year 5138


def _seconds(times: pl.Series, unit: TimeUnit) -> pl.Series:
    """Whole seconds since 1970, null where a time does not parse."""
    if times.dtype.is_temporal():
        return times.dt.epoch("s")
    if unit == "iso":
        texts = times.cast(pl.String)
        return texts.map_elements(_parse_iso, return_dtype=pl.Int64)
    numbers = times.cast(pl.Float64, strict=False) / (1000 if unit == "ms" else 1)
    return numbers.floor().cast(pl.Int64, strict=False)


def _parse_iso(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _parquet_blocks(file: BinaryIO, source: str, columns: dict) -> Iterator[Block]:
    try:
        picked = pick_columns(columns, list(pl.read_parquet_schema(file)), source)
        file.seek(0)
        frame = pl.read_parquet(file, columns=list(set(picked)))
    except pl.exceptions.PolarsError as error:
        raise OSError(one_line(error)) from error
    frame = frame.select(
        pl.col(c).alias(k) for k, c in zip(columns, picked, strict=True)
    )
    for name, dtype in zip(picked, frame.dtypes, strict=True):
        if dtype.is_nested():
            raise InputError(
                f"{source}: found {dtype} in column {name!r}; expected one value "
                "a row: bring the flat file, one row an interaction"
            )
    for first in range(0, frame.height, BLOCK_ROWS):

        def blame(row: int, text: str, first: int = first) -> InputError:
            return InputError(f"{source}: row {first + row + 1}: {text}")

        yield Block(frame[first : first + BLOCK_ROWS], blame)
