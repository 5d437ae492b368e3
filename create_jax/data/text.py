"""Text as blocks of whole records: CSV with any separator and JSON lines.

A block is parsed at once. An irregular block (blank lines, trailing separators, a quote
inside a field) is split again record by record. That also gives the line of an error.
"""

import codecs
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from create_jax.data import container
from create_jax.errors import InputError, one_line

KEYS = ("user", "item", "time")
SEPARATORS = (",", "\t", ";", "|", "::")  # tried for `auto`, in this order
SAMPLE = 1 << 14  # bytes read to detect the form of a CSV
FIELD = "\x1f"  # stands in for a separator of several characters
QUOTE, NEWLINE, RETURN = b'"\n\r'
BYTE_ORDER = {  # marks at the beginning of a text; the longer ones first
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Block(NamedTuple):
    """A piece of the log."""

    frame: pl.DataFrame  # user, item, time, rating as they stand in the file
    blame: Callable[[int, str], InputError]  # (row, what is wrong there)


class Malformed(Exception):
    """`trouble` with the form of the record `row` of a block, or at a byte of it."""

    def __init__(self, trouble: str, *, row: int = -1, byte: int = -1):
        super().__init__(trouble)
        self.trouble, self.row, self.byte = trouble, row, byte


def pick_columns(columns: dict, names: Sequence[str], place: str) -> list[int]:
    """Indices of the columns user, item, time and, if wanted, rating."""
    picked = []
    for key, column in columns.items():
        if isinstance(column, int):
            found = [column] if 0 <= column < len(names) else []
        else:
            found = [i for i, name in enumerate(names) if name == column.strip()]
        if not found:
            raise InputError(
                f"{place}: found no column {column!r} for {key}; expected one of "
                f"{listed(names)}: check the columns, the separator and the header"
            )
        if len(found) > 1:
            raise InputError(
                f"{place}: found {len(found)} columns of the name {column!r}; expected "
                f"one for {key}: rename or drop the others"
            )
        picked += found
    return picked


def is_encoding(name: str) -> bool:
    """Whether Python can decode this encoding piece by piece; "auto" too."""
    try:
        return name == "auto" or "".encode(name).decode(name) == ""
    except (LookupError, UnicodeError, ValueError):
        return False


def listed(names: Sequence, most: int = 12) -> str:
    """The first names, cut to the length of a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(one_line(name, 24) for name in names[:most]) + more


def text_blocks(
    chunks: Iterator[bytes],
    source: str,
    columns: dict,
    *,
    separator: str,
    format: str,
    header: bool,
    quoting: bool,
    encoding: str,
) -> Iterator[Block]:
    chunks = _utf8(chunks, encoding, source)
    start = b""
    for chunk in chunks:
        start += chunk
        if b"\n" in start.lstrip(b"\r\n"):
            break
    first = start.lstrip(b"\r\n")
    if not first:
        return
    line = 1 + start.count(b"\n", 0, len(start) - len(first))
    place = f"{source}:{line}"
    if format == "auto" and re.match(rb"\s*\[\s*\{", first):
        raise InputError(
            f"{place}: found a JSON list; expected JSON lines: one object a line"
        )
    if format == "jsonl" or (format == "auto" and first.lstrip().startswith(b"{")):
        parser = _json_lines(columns, place)
    else:
        parser = _csv(first, columns, separator, header, quoting, place)
        if header:
            first, line = first.partition(b"\n")[2], line + 1
    for text in _whole_records(chain([first], chunks), parser):

        def blame(row: int, trouble: str, text=text, line=line) -> InputError:
            offset, record = parser.records(text)[row]
            trouble = parser.complain(record) or trouble
            return InputError(f"{source}:{line + offset}: {trouble}")

        try:
            frame = parser.parse(text)
        except Malformed as error:
            if error.row >= 0:
                raise blame(error.row, error.trouble) from error
            line += text.count(b"\n", 0, max(error.byte, 0))
            raise InputError(f"{source}:{line}: {error.trouble}") from error
        if frame.height:
            yield Block(frame, blame)
        line += text.count(b"\n")


def _utf8(chunks: Iterator[bytes], encoding: str, source: str) -> Iterator[bytes]:
    """The text in UTF-8 with the line ends of Unix or Windows, its byte order mark
    dropped, whose encoding it names where `encoding` is auto."""
    first = next(chunks, b"")
    mark = next((m for m in BYTE_ORDER if first.startswith(m)), b"")
    if mark and (encoding == "auto" or BYTE_ORDER[mark].startswith(_name(encoding))):
        encoding, first = BYTE_ORDER[mark], first[len(mark) :]
    chunks = chain([first], chunks)
    if encoding != "auto" and _name(encoding) not in ("utf-8", "ascii"):
        chunks = _decoded(chunks, encoding, source)
    line, mac = 1, None
    for chunk in chunks:
        if b"\0" in chunk:
            line += chunk.count(b"\n", 0, chunk.index(b"\0"))
            raise InputError(
                f"{source}:{line}: found a zero byte; expected text: bring a text file,"
                " or name its encoding (--config.data.table.encoding=utf-16)"
            )
        if mac is None and chunk:
            mac = b"\n" not in chunk and b"\r" in chunk
        yield chunk.replace(b"\r", b"\n") if mac else chunk
        line += chunk.count(b"\n")


def _name(encoding: str) -> str:
    return codecs.lookup(encoding).name if encoding != "auto" else ""


def _decoded(chunks: Iterator[bytes], encoding: str, source: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    try:
        for chunk in chain(chunks, [b""]):  # an empty chunk marks the end
            text = decoder.decode(chunk, final=not chunk)
            line += text.count("\n")
            yield text.encode()
    except UnicodeError as error:
        if isinstance(error, UnicodeDecodeError):
            good = error.object[: error.start].decode(encoding, "ignore")
            line += good.count("\n")
        raise InputError(
            f"{source}:{line}: found bytes that are not {encoding}; expected a text in "
            "it: set --config.data.table.encoding="
        ) from error


def _whole_records(chunks: Iterator[bytes], parser) -> Iterator[bytes]:
    """Cuts the text after line ends, those inside quotes aside."""
    text = b""
    for chunk in chunks:
        text += chunk
        cut = parser.cut(text)
        if not cut and len(text) > 4 * container.BLOCK:
            cut = text.rfind(b"\n") + 1  # a stray quote, not a field of this size
        if cut:
            yield text[:cut]
            text = text[cut:]
    if text:
        yield text


# --- CSV ------------------------------------------------------------------------------


class _CSV(NamedTuple):
    """The form of a CSV.

    Quotes are those of RFC 4180: a field that begins with one ends with one, and those
    inside it are doubled. A quote inside any other field is a character of it.
    """

    mark: bytes  # between fields
    quoted: bool  # fields may be quoted: line breaks and marks inside mean nothing
    picked: dict[str, int]  # key -> place of its column
    width: int  # fields of a record
    spare: int  # how many fields at the end have no name and may be missing

    @property
    def _field(self) -> re.Pattern:
        """A whole quoted field."""
        mark = re.escape(self.mark)
        return re.compile(rb'"(?<![^%b\n]")(?>[^"]+|"")*+"(?![^%b\r\n])' % (mark, mark))

    @property
    def _opening(self) -> re.Pattern:
        """The quote that begins a field."""
        return re.compile(rb'"(?<![^%b\n]")' % re.escape(self.mark))

    def cut(self, text: bytes) -> int:
        """Where the last whole record ends."""
        cut = text.rfind(b"\n") + 1
        bad = self._bad_quote(text[:cut])
        if bad >= 0 and _is_open(text[:cut], bad):
            return text.rfind(b"\n", 0, bad) + 1
        return cut

    def _bad_quote(self, text: bytes) -> int:
        """Where a field begins with a quote and is no quoted field; -1 for nowhere."""
        if not self.quoted or b'"' not in text or _is_regular(text, self.mark):
            return -1
        field, opening = self._field, self._opening
        place = -1
        if opening.search(field.sub(b"", text)):
            end = 0
            while whole := field.match(
                text, place := opening.search(text, end).start()
            ):
                end = whole.end()
        return place

    def _ends(self, text: bytes) -> np.ndarray:
        """Where records end: at all line ends but those inside quotes."""
        if not self.quoted or b'"' not in text:
            return _places(text, NEWLINE)
        if _is_regular(text, self.mark):
            ends = _places(text, NEWLINE)
            return ends[np.searchsorted(_places(text, QUOTE), ends) % 2 == 0]
        masked = self._field.sub(lambda m: m[0].replace(b"\n", b" "), text)
        return _places(masked, NEWLINE)

    def records(self, text: bytes) -> list[tuple[int, bytes]]:
        """The records that are not blank, with the number of lines before each."""
        found, begin, line = [], 0, 0
        for end in [*self._ends(text).tolist(), len(text)]:
            record = text[begin:end].removesuffix(b"\r")
            if record.strip(b" \t" + self.mark):
                found.append((line, record))
            begin = end + 1
            line += 1 + record.count(b"\n")
        return found

    def split(self, record: bytes) -> list[bytes]:
        if not self.quoted or b'"' not in record:
            return record.split(self.mark)
        masked = self._field.sub(lambda m: b"x" * len(m[0]), record)
        fields, begin = [], 0
        for length in map(len, masked.split(self.mark)):
            field = record[begin : begin + length]
            if field.startswith(b'"'):
                field = field[1:-1].replace(b'""', b'"')
            fields.append(field)
            begin += length + len(self.mark)
        return fields

    def parse(self, text: bytes) -> pl.DataFrame:
        bad = self._bad_quote(text)
        if bad >= 0:
            trouble = (
                "found a quote that does not close; expected quotes in pairs"
                if _is_open(text, bad)
                else "found text after a closing quote; expected quotes inside a quoted"
                " field doubled"
            )
            raise Malformed(
                f"{trouble}: mend it, or read quotes as any other character "
                "(--config.data.table.quoting=False)",
                byte=bad,
            )
        ends = self._ends(text)
        self._refuse_swallowed(text, ends)
        try:
            return self._at_once(text, ends)
        except pa.ArrowException:
            return self._one_by_one(self.records(text))

    def _refuse_swallowed(self, text: bytes, ends: np.ndarray) -> None:
        """Refuses a field between two stray quotes that has swallowed rows."""
        line_ends = np.append(_places(text, NEWLINE), len(text))
        ends = np.append(ends, len(text))
        if len(line_ends) == len(ends):
            return
        marks = np.searchsorted(_places(text, self.mark[0]), line_ends)
        like_rows = np.diff(marks, prepend=0) == self.width - 1
        last = np.searchsorted(line_ends, ends)  # the line that ends a record
        first = np.append(0, last[:-1] + 1)
        # Its first and last line look like rows. The lines between may have any form.
        suspects = (last > first) & like_rows[first] & like_rows[last]
        for record in np.flatnonzero(suspects):
            begin = ends[record - 1] + 1 if record else 0
            rows = text[begin : ends[record]].split(b"\n")
            times = [
                row.split(self.mark)[self.picked["time"]] for row in (rows[0], rows[-1])
            ]
            if all(re.match(rb'\s*"?[+-]?[0-9]', time) for time in times):
                raise Malformed(
                    f"found a quoted field over {len(rows)} lines that are rows "
                    "themselves; expected quotes in pairs: mend them, or read quotes "
                    "as any other character (--config.data.table.quoting=False)",
                    byte=begin,
                )

    def _at_once(self, text: bytes, ends: np.ndarray) -> pl.DataFrame:
        """Raises pa.ArrowException for irregular text, to be split by record."""
        names = [str(i) for i in range(self.width)]
        picked = [str(i) for i in self.picked.values()]
        single = (
            text if len(self.mark) == 1 else text.replace(self.mark, FIELD.encode())
        )
        table = pyarrow.csv.read_csv(
            pa.py_buffer(single),
            pyarrow.csv.ReadOptions(column_names=names),
            pyarrow.csv.ParseOptions(
                delimiter=self.mark.decode() if len(self.mark) == 1 else FIELD,
                quote_char='"' if self.quoted else False,
                newlines_in_values=self.quoted and b'"' in text,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string()),
                include_columns=list(dict.fromkeys(picked)),
            ),
        )
        frame = pl.from_arrow(table).select(
            pl.col(i).alias(key) for key, i in zip(self.picked, picked, strict=True)
        )
        if (
            frame.height != _count_filled(text, ends)
            or text.count(b"\r") != text.count(b"\r\n")  # is the end of a line to Arrow
            or (frame["time"] == "").any()  # is the line blank?
        ):
            raise pa.ArrowInvalid("the records are not as regular as that")
        return frame

    def _one_by_one(self, records: list[tuple[int, bytes]]) -> pl.DataFrame:
        rows = []
        for row, (_, record) in enumerate(records):
            fields = self.split(record)
            while len(fields) > self.width and not fields[-1].strip():
                fields.pop()
            if not self.width - self.spare <= len(fields) <= self.width:
                raise Malformed(
                    f"found {len(fields)} fields; expected {self.width}: mend or drop "
                    "the row",
                    row=row,
                )
            try:
                rows.append([fields[i].decode() for i in self.picked.values()])
            except UnicodeDecodeError as error:
                raise Malformed(
                    f"found invalid utf-8 ({error.object[error.start]:#x}); expected "
                    "text in it: name the encoding, perhaps "
                    "--config.data.table.encoding=latin-1",
                    row=row,
                ) from error
        return pl.DataFrame(rows, dict.fromkeys(self.picked, pl.String), orient="row")

    def complain(self, record: bytes) -> str:
        return ""


def _places(text: bytes, byte: int) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(text, np.uint8) == byte)


def _count_filled(text: bytes, ends: np.ndarray) -> int:
    """How many records are not empty."""
    begins = np.concatenate([[0], ends + 1])
    lengths = np.append(ends, len(text)) - begins
    first = np.frombuffer(text + b"\n", np.uint8)[begins]
    return int(((lengths > 1) | ((lengths == 1) & (first != RETURN))).sum())


def _is_regular(text: bytes, mark: bytes) -> bool:
    """Whether every quote opens or closes a field, or is half of a doubled pair."""
    text = b"\n" + text + b"\n"
    quotes, around = _places(text, QUOTE), np.frombuffer(text, np.uint8)
    before, after = around[quotes[::2] - 1], around[quotes[1::2] + 1]
    left = np.isin(before, [QUOTE, NEWLINE, *mark])
    right = np.isin(after, [QUOTE, RETURN, NEWLINE, *mark])
    return len(quotes) % 2 == 0 and bool(left.all() and right.all())


def _is_open(text: bytes, place: int) -> bool:
    """Whether the quoted field that begins at `place` has no end."""
    return re.compile(rb'"(?>[^"]+|"")*+\Z').match(text, place) is not None


def _csv(
    start: bytes, columns: dict, separator: str, header: bool, quoting: bool, place: str
) -> _CSV:
    """Finds the form of a CSV in its first lines."""
    head, _, rest = start.partition(b"\n")
    sample = rest[:SAMPLE].rpartition(b"\n")[0] or rest[:SAMPLE]
    sample = sample if header else head + b"\n" + sample

    def form_of(separator: str) -> _CSV:
        mark = separator.encode()
        return _CSV(mark, quoting and len(mark) == 1 and mark != b'"', {}, 0, 0)

    if separator == "auto":
        forms = [form_of(s) for s in SEPARATORS]
        form = max(forms, key=lambda form: _fit(form, head, sample, columns, header))
    elif separator.strip("\r\n"):
        form = form_of(separator)
    else:
        raise InputError(f"{place}: found an empty separator; expected one, such as ,")
    names = _names(form, head, header)
    picked = pick_columns(columns, names, place)
    # The first record gives the number of fields. It may differ from the number of
    # names if the fields or names in excess are empty.
    records = form.records(sample)
    fields = [f.strip() for f in form.split(records[0][1])] if records else names
    known = names if header else fields
    used = max(*picked, *(i for i, name in enumerate(known) if name)) + 1
    width = len(names) if any(fields[len(names) :]) else max(used, len(fields))
    keys = dict(zip(columns, picked, strict=True))
    return form._replace(picked=keys, width=width, spare=width - used)


def _names(form: _CSV, head: bytes, header: bool) -> list[str]:
    fields = form.split(head.removesuffix(b"\r"))
    if not header:
        return [str(i) for i in range(len(fields))]
    return [field.decode(errors="replace").strip() for field in fields]


def _fit(
    form: _CSV, head: bytes, sample: bytes, columns: dict, header: bool
) -> tuple[int, ...]:
    """How well a separator fits: the larger, the better."""
    if header:  # it shows the columns
        names = _names(form, head, header)
        asked = columns.values()
        shown = (c in names if isinstance(c, str) else c < len(names) for c in asked)
        return sum(shown), len(names)
    # It splits most lines into equally many fields.
    widths = Counter(len(form.split(record)) for _, record in form.records(sample))
    width, lines = widths.most_common(1)[0] if widths else (1, 0)
    return width >= len(columns), (width > 1) * lines, width


# --- JSON lines -----------------------------------------------------------------------


class _JSONLines(NamedTuple):
    columns: dict[str, str]  # key -> the name of its field

    def cut(self, text: bytes) -> int:
        return text.rfind(b"\n") + 1

    def records(self, text: bytes) -> list[tuple[int, bytes]]:
        lines = enumerate(text.split(b"\n"))
        return [(number, line) for number, line in lines if line.strip()]

    def parse(self, text: bytes) -> pl.DataFrame:
        names = dict.fromkeys(self.columns.values(), pl.String)
        if not text.strip():
            return pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
        try:
            frame = pl.read_ndjson(text.strip(), schema=names)
        except pl.exceptions.PolarsError as error:
            trouble = one_line(str(error).partition("\n")[0], 99)
            row = self._first_refused(text, names)
            trouble = f"found a malformed row ({trouble}): mend or drop it"
            raise Malformed(trouble, row=row) from error
        lines = text.count(b"\n") + (not text.endswith(b"\n"))
        if frame.height != lines and frame.height != len(self.records(text)):
            trouble = f"found {frame.height} objects in {lines} lines from here"
            raise Malformed(f"{trouble}; expected one a line: mend them")
        # Half a character, as \ud83d, is read as a zero byte.
        odd = frame.select(pl.any_horizontal(pl.all().str.contains(r"^[\[{]|\x00")))
        suspects = odd.to_series().fill_null(False).arg_true().to_list()
        records = self.records(text) if suspects else []
        for row in suspects:
            if trouble := self.complain(records[row][1]):
                raise Malformed(trouble, row=row)
        return frame.select(pl.col(c).alias(key) for key, c in self.columns.items())

    def _first_refused(self, text: bytes, names: dict) -> int:
        """The first record that does not parse, by bisection."""
        records = [record for _, record in self.records(text)]

        def refused(index: int) -> bool:
            try:
                pl.read_ndjson(b"\n".join(records[: index + 1]), schema=names)
            except pl.exceptions.PolarsError:
                return True
            return False

        return bisect_left(range(len(records) - 1), True, key=refused)

    def complain(self, record: bytes) -> str:
        """What is wrong with the form of a record, or ""."""

        def no_constant(name):
            raise ValueError(f"{name} is none of its values")

        try:
            found = json.loads(record, parse_constant=no_constant)
        except (ValueError, RecursionError) as error:
            return f"found no valid JSON ({error}); expected one object a line: mend it"
        if not isinstance(found, dict):
            return f"found a JSON {type(found).__name__}; expected an object: mend it"
        for key, column in self.columns.items():
            value = found.get(column)
            if column not in found and key in KEYS:
                return (
                    f"found no field {column!r} for {key}; expected one of "
                    f"{listed(list(found))}: check the columns"
                )
            if isinstance(value, list | dict):
                nested = "a list" if isinstance(value, list) else "an object"
                return (
                    f"found {nested} in the field {column!r}; expected one value a "
                    "row: write a line for each"
                )
            if isinstance(value, str) and any("\ud800" <= c < "\ue000" for c in value):
                return (
                    f"found half a character in the field {column!r}, "
                    f"{one_line(ascii(value), 40)}; expected text: mend it"
                )
        return ""


def _json_lines(columns: dict, place: str) -> _JSONLines:
    for key, column in columns.items():
        if not isinstance(column, str):
            raise InputError(
                f"{place}: found column {column!r} for {key}; expected the name of a "
                "field: JSON lines have no column numbers"
            )
    return _JSONLines(columns)
