"""Text as blocks of whole records: CSV with any separator and JSON lines.

A block that does not parse is looked at again, record by record, to name its line.
"""

import csv
import gzip
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import BinaryIO, NamedTuple

import polars as pl
import pyarrow as pa

from create_jax.errors import InputError

KEYS = ("user", "item", "time")
BLOCK = 1 << 24  # bytes of text parsed at a time
FIELD = "\x1f"  # stands in for a separator of several characters


class Block(NamedTuple):
    """A piece of the log."""

    frame: pl.DataFrame  # user, item, time, rating as they stand in the file
    blame: Callable[[int, str], InputError]  # (row, what is wrong there)


class Parser(NamedTuple):
    """One text format."""

    parse: Callable[[bytes], pl.DataFrame]  # whole records -> the columns
    complain: Callable[[bytes], str]  # a record -> what is wrong with its form, or ""
    quoted: bool  # a quoted field may hold line breaks
    skips_blank: bool  # a blank line makes no row


def pick_columns(
    columns: dict, names: Sequence[str | int], place: str
) -> list[str | int]:
    """The names of the columns user, item, time and, where asked for, rating."""
    picked = []
    for key, column in columns.items():
        if isinstance(column, int) and 0 <= column < len(names):
            column = names[column]
        if column not in names:
            raise InputError(
                f"{place}: found no column {column!r} for {key}; expected one of "
                f"{', '.join(map(str, names))}: check the columns and the separator"
            )
        picked.append(column)
    return picked


def text_blocks(
    chunks: Iterator[bytes],
    source: str,
    columns: dict,
    separator: str,
    format: str,
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
                trouble = f"found a malformed row ({one_line(error)}): mend or drop it"
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
    picked = [names.index(name) for name in pick_columns(columns, names, place)]
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
            pl.col(str(i)).alias(key) for key, i in zip(columns, picked, strict=True)
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
    schema = {column: pl.String for column in columns.values()}

    def parse(text: bytes) -> pl.DataFrame:
        frame = pl.read_ndjson(text, schema=schema)
        return frame.select(pl.col(c).alias(key) for key, c in columns.items())

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


def decompress(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    if magic == b"\x28\xb5\x2f\xfd":
        file = pa.input_stream(file, compression="zstd")
    elif magic.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=file)
    return iter(partial(file.read, BLOCK), b"")


def one_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
