"""Parquet as blocks of rows. Every type with a unique text form can be an id."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet
from pyarrow import types

from create_jax.data.text import Block, pick_columns
from create_jax.data.times import YEAR, parse
from create_jax.errors import InputError, one_line

BLOCK_ROWS = 1 << 20  # rows parsed at a time
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
UUID = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))  # digits in its groups
BYTES = (types.is_binary, types.is_large_binary, types.is_binary_view)
AS_TEXT = (types.is_decimal, types.is_null, *BYTES)
NO_TEXT = (types.is_duration, types.is_interval)
# Types in which one id has one text, whichever of them it has.
ONE_TEXT = (types.is_integer, types.is_string, types.is_large_string, *BYTES)
ONE_TEXT += (types.is_string_view, types.is_fixed_size_binary)
NO_TIME = (types.is_boolean, types.is_fixed_size_binary, types.is_interval)
NO_RATING = (types.is_temporal, types.is_fixed_size_binary)


def parquet_blocks(file: BinaryIO, source: str, columns: dict) -> Iterator[Block]:
    """Ids as text; times as numbers, texts, Date, Datetime (UTC), Duration or Time."""
    first = 0
    for batch in _batches(file, source, columns):

        def blame(row: int, text: str, first: int = first) -> InputError:
            return InputError(f"{source}: row {first + row + 1}: {text}")

        yield Block(pl.DataFrame(batch), blame)
        first += len(batch["time"])


def _batches(file: BinaryIO, source: str, columns: dict) -> Iterator[dict]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        picked = [names[i] for i in pick_columns(columns, names, source)]
        keys = dict(zip(columns, picked, strict=True))
        for key, name in keys.items():
            _check(key, name, table.schema_arrow.field(name).type, source)
        wanted = list(dict.fromkeys(picked))
        for batch in table.iter_batches(BLOCK_ROWS, columns=wanted):
            yield {k: _column(k, name, batch[name], source) for k, name in keys.items()}
    except DAMAGE as error:
        raise OSError(str(error)) from error


def _column(key: str, name: str, column: pa.Array, source: str) -> pl.Series:
    try:
        column.validate(full=True)  # damage may leave bytes that are no UTF-8
        return texts(column) if key in ("user", "item") else _value(column)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{source}: found values that are no text in column {name!r} for {key} "
            f"({one_line(error, 150)}); expected text or numbers: cast it, or fetch a "
            "damaged file again"
        ) from error


def _check(key: str, name: str, kind: pa.DataType, source: str) -> None:
    """Raises InputError for a type that has no unique text form or time."""
    found, kind = kind, _plain(kind)
    place, expected = f"in column {name!r} for {key}", ""
    if types.is_nested(kind):
        found = pl.from_arrow(pa.array([], kind)).dtype
        expected = "one value a row: bring the flat file, one row an interaction"
    elif key in ("user", "item") and any(test(kind) for test in NO_TEXT):
        expected = "text or numbers: cast it"
    elif key == "time" and any(test(kind) for test in NO_TIME):
        expected = "numbers, dates or times of them: name or make such a column"
    elif key == "rating" and any(test(kind) for test in NO_RATING):
        expected = "numbers: name the column of the ratings"
    if expected:
        raise InputError(f"{source}: found {found} {place}; expected {expected}")


def check_parts(files: Sequence[Path], columns: dict) -> None:
    """Raises InputError where one id would have two texts, as 1 and 1.0 in parts that
    have whole numbers and fractions. A part that cannot be read is not looked at."""
    for key in ("user", "item"):
        first = None
        for file in files:
            try:
                schema = pyarrow.parquet.read_schema(file)
                kind = _plain(schema.field(columns[key]).type)
            except (*DAMAGE, KeyError, IndexError):
                continue
            text = "text" if any(test(kind) for test in ONE_TEXT) else str(kind)
            first = first or (text, kind, file)
            if text != first[0]:
                raise InputError(
                    f"{file}: found {kind} in column {columns[key]!r} for {key}, and "
                    f"{first[1]} in {first[2].name}, so that one id would have two "
                    "texts; expected one type in all parts: cast it"
                )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary or an extension type."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _value(column: pa.Array) -> pl.Series:
    """The column in a type that polars has."""
    while isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    kind = _plain(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if any(test(kind) for test in AS_TEXT):
        column = column.cast(pa.large_string())
    elif types.is_float16(kind):
        column = column.cast(pa.float32())
    elif types.is_timestamp(kind):  # in any zone: the number counts in UTC
        column = column.cast(pa.int64()).cast(pa.timestamp(kind.unit))
    return pl.from_arrow(column)


def texts(column: pa.Array) -> pl.Series:
    """Ids as text, null where there is none: 16 bytes as a UUID, others in hex."""
    kind = _plain(column.type)
    if types.is_fixed_size_binary(kind):
        while isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        hexes = pl.from_arrow(column.cast(pa.large_binary())).bin.encode("hex")
        if kind.byte_width != 16:
            return hexes
        groups = [hexes.str.slice(a, n) for a, n in UUID]
        return pl.select(pl.concat_str(groups, separator="-")).to_series()
    ids = _value(column)
    if ids.dtype.is_float():
        ids = _where(ids.is_finite(), ids)
    elif ids.dtype in (pl.Date, pl.Datetime):  # years of four digits have a text
        year = parse(ids, "iso")["seconds"] // YEAR
        ids = _where(year.is_between(-1900, 7900), ids)
    return ids.cast(pl.String)


def _where(known: pl.Series, column: pl.Series) -> pl.Series:
    """The column, null elsewhere."""
    return pl.select(pl.when(known).then(column)).to_series()
