"""Any log in a file: CSV with any separator, JSON lines, Parquet; plain, .gz or .zst.

Text is read in blocks of whole records and ids become categories block by block, so a
log needs little more memory than its arrays. A record that does not parse is looked up
only then, to name its line.
"""

import csv
import gzip
import json
import time
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import BinaryIO, Literal, NamedTuple
from zipfile import BadZipFile

import polars as pl
import pyarrow as pa

from create_jax.data.interactions import Interactions, from_frame
from create_jax.errors import InputError

Format = Literal["auto", "csv", "jsonl", "parquet"]
TimeUnit = Literal["auto", "s", "ms", "iso"]

KEYS = ("user", "item", "time")
BLOCK = 1 << 24  # bytes of text, or
BLOCK_ROWS = 1 << 20  # rows of Parquet, parsed at a time
FIELD = "\x1f"  # stands in for a separator of several characters
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
      columns: the names, or 0-based indices, of the columns user, item and time.
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
    """Reads user, item (categories), time (seconds) from an open file; see `load`."""
    if set(columns) != set(KEYS):
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
            chunks = _decompress(file, magic)
            blocks = _text_blocks(chunks, source, columns, separator, format, header)
        return _combine(blocks, source, time_unit)
    except DAMAGE as error:
        raise InputError(
            f"{source}: the file is cut off or damaged ({_one_line(error)}); "
            "expected a complete one: fetch it again"
        ) from error


class Block(NamedTuple):
    """A piece of the log."""

    frame: pl.DataFrame  # user, item, time as they stand in the file
    blame: Callable[[int, str], InputError]  # (row, what is wrong there)


class Parser(NamedTuple):
    """One text format."""

    parse: Callable[[bytes], pl.DataFrame]  # whole records -> user, item, time
    complain: Callable[[bytes], str]  # a record -> what is wrong with its form, or ""
    quoted: bool  # a quoted field may hold line breaks
    skips_blank: bool  # a blank line makes no row


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
            raise blame(row, _complain(part.row(row), raw["time"][row], unit))
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


def _pick(columns: dict, names: Sequence[str | int], place: str) -> list[str | int]:
    """The names of the columns user, item and time."""
    picked = []
    for key in KEYS:
        column = columns[key]
        if isinstance(column, int) and 0 <= column < len(names):
            column = names[column]
        if column not in names:
            raise InputError(
                f"{place}: found no column {column!r} for {key}; expected one of "
                f"{', '.join(map(str, names))}: check the columns and the separator"
            )
        picked.append(column)
    return picked


def _parquet_blocks(file: BinaryIO, source: str, columns: dict) -> Iterator[Block]:
    try:
        picked = _pick(columns, list(pl.read_parquet_schema(file)), source)
        file.seek(0)
        frame = pl.read_parquet(file, columns=list(set(picked)))
    except pl.exceptions.PolarsError as error:
        raise OSError(_one_line(error)) from error
    frame = frame.select(pl.col(c).alias(k) for k, c in zip(KEYS, picked, strict=True))
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


def _text_blocks(
    chunks: Iterator[bytes],
    source: str,
    columns: dict,
    separator: str,
    format: Format,
    header: bool,
) -> Iterator[Block]:
    start = next(chunks, b"").removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    if not start.strip():
        return
    line = 1
    if format == "jsonl" or (format == "auto" and start.lstrip().startswith(b"{")):
        parser = _jsonl_parser(columns, source)
    else:
        head, _, rest = start.partition(b"\n")
        parser = _csv_parser(head, columns, separator, header, f"{source}:1")
        if header:
            start, line = rest, 2
    for text in _whole_records(chain([start], chunks), parser.quoted):

        def blame(row: int, trouble: str, text=text, line=line) -> InputError:
            offset, record = _records(text, parser)[row]
            trouble = parser.complain(record) or trouble
            return InputError(f"{source}:{line + offset}: {trouble}")

        if text.strip():
            try:
                frame = parser.parse(text.rstrip(b"\r\n"))
            except pl.exceptions.PolarsError as error:
                trouble = f"found a malformed row ({_one_line(error)}): mend or drop it"
                raise blame(_first_refused(text, parser), trouble) from error
            yield Block(frame, blame)
        line += text.count(b"\n")


def _csv_parser(
    head: bytes, columns: dict, separator: str, header: bool, place: str
) -> Parser:
    if not separator:
        raise InputError(f"{place}: found an empty separator; expected one, such as ,")
    mark = separator.encode()
    single = len(mark) == 1
    delimiter = separator if single else FIELD

    def one_character(text: bytes) -> bytes:
        return text if single else text.replace(mark, FIELD.encode())

    def split(record: bytes) -> list[str]:
        text = one_character(record).decode(errors="replace").rstrip("\r\n")
        quoting = csv.QUOTE_MINIMAL if single else csv.QUOTE_NONE
        return next(csv.reader([text], delimiter=delimiter, quoting=quoting), [])

    first = split(head)
    names = first if header else list(range(len(first)))
    picked = [names.index(name) for name in _pick(columns, names, place)]
    schema = {str(i): pl.String for i in range(len(names))}

    def parse(text: bytes) -> pl.DataFrame:
        frame = pl.read_csv(
            one_character(text),
            has_header=False,
            schema=schema,
            separator=delimiter,
            quote_char='"' if single else None,
        )
        return frame.select(
            pl.col(str(i)).alias(key) for key, i in zip(KEYS, picked, strict=True)
        )

    def complain(record: bytes) -> str:
        try:
            width = len(split(record))
        except csv.Error:
            return (
                "found a quote that does not close; expected quotes in pairs: mend it"
            )
        if width == len(names):
            return ""
        return f"found {width} fields; expected {len(names)}: mend or drop the row"

    return Parser(parse, complain, quoted=single, skips_blank=False)


def _jsonl_parser(columns: dict, source: str) -> Parser:
    for key, column in columns.items():
        if not isinstance(column, str):
            raise InputError(
                f"{source}: found column {column!r} for {key}; expected the name of a "
                "field: JSON lines have no column numbers"
            )
    schema = {columns[key]: pl.String for key in KEYS}

    def parse(text: bytes) -> pl.DataFrame:
        frame = pl.read_ndjson(text, schema=schema)
        return frame.select(pl.col(columns[key]).alias(key) for key in KEYS)

    def complain(record: bytes) -> str:
        try:
            found = json.loads(record)
        except ValueError as error:
            return f"found no valid JSON ({error}); expected one object a line: mend it"
        if not isinstance(found, dict):
            return f"found a JSON {type(found).__name__}; expected an object: mend it"
        for key in KEYS:
            if columns[key] not in found:
                return (
                    f"found no field {columns[key]!r} for {key}; expected one of "
                    f"{', '.join(found)}: check the columns"
                )
        return ""

    return Parser(parse, complain, quoted=False, skips_blank=True)


def _whole_records(chunks: Iterator[bytes], quoted: bool) -> Iterator[bytes]:
    """Cuts the text after line ends, those inside quotes aside."""
    text = b""
    for chunk in chunks:
        text += chunk
        cut = text.rfind(b"\n") + 1
        inside = quoted and text.count(b'"', 0, cut) % 2
        while inside and cut:  # back to before the field that is still open
            line = text.rfind(b"\n", 0, text.rfind(b'"', 0, cut)) + 1
            inside ^= text.count(b'"', line, cut) % 2
            cut = line
        if not cut and len(text) > 4 * BLOCK:
            cut = text.rfind(b"\n") + 1  # a stray quote, not a field of this size
        if cut:
            yield text[:cut]
            text = text[cut:]
    if text:
        yield text


def _records(text: bytes, parser: Parser) -> list[tuple[int, bytes]]:
    """The record of each row, with the number of lines before it."""
    lines = list(enumerate(text.rstrip(b"\r\n").split(b"\n")))
    if parser.skips_blank:
        lines = [(number, line) for number, line in lines if line.strip()]
    if not parser.quoted:
        return lines
    records, inside = [], False
    for number, line in lines:
        if inside:
            records[-1][1].append(line)
        else:
            records.append((number, [line]))
        inside ^= line.count(b'"') % 2 == 1
    return [(number, b"\n".join(parts)) for number, parts in records]


def _first_refused(text: bytes, parser: Parser) -> int:
    """The first record that does not parse, by bisection."""
    records = [record for _, record in _records(text, parser)]

    def refused(index: int) -> bool:
        try:
            parser.parse(b"\n".join(records[: index + 1]))
        except pl.exceptions.PolarsError:
            return True
        return False

    return bisect_left(range(len(records) - 1), True, key=refused)


def _decompress(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    if magic == b"\x28\xb5\x2f\xfd":
        file = pa.input_stream(file, compression="zstd")
    elif magic.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=file)
    return iter(partial(file.read, BLOCK), b"")


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
