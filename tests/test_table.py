import gzip
import json
import os
import time

import polars as pl
import pyarrow as pa
import pytest
from test_interactions import triples

from create_jax.data import table
from create_jax.errors import InputError

NAMED = {"user": "user", "item": "item", "time": "time"}
PLACED = {"user": 0, "item": 1, "time": 3}
ROWS = [("a", "x", 5), ("b", "y", 6), ("b", "x", 7)]
CSV = b"time,item,user\n5,x,a\n6,y,b\n7,x,b\n"
JSONL = b"".join(
    json.dumps({"user": u, "text": 'a "b"\n', "item": i, "time": t}).encode() + b"\n"
    for u, i, t in ROWS
)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "log") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


@pytest.fixture
def tokyo(monkeypatch):
    """Sets the time zone of the machine, which must play no part."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def message(path, **options):
    """The one line by which a file is refused."""
    with pytest.raises(InputError) as caught:
        table.load(path, **{"columns": NAMED} | options)
    text = str(caught.value)
    assert text.startswith(path)
    assert "\n" not in text
    return text.removeprefix(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize(
    "text",
    [CSV, CSV.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + CSV, JSONL, JSONL[:-1]],
)
def test_reads_text_plain_and_compressed(write, text, pack):
    assert triples(table.load(write(pack(text)), columns=NAMED)) == ROWS


def test_reads_parquet(tmp_path):
    path = str(tmp_path / "log")
    pl.DataFrame(ROWS, ["user", "item", "time"], orient="row").write_parquet(path)
    assert triples(table.load(path, columns=NAMED)) == ROWS


@pytest.mark.parametrize("separator", [",", "\t", "::", "||", "·"])
def test_separators_and_column_numbers(write, separator):
    lines = [["a", "x", "4", "5"], ["b", "y", '"', "6"], ["b", "x", "4", "7"]]
    if separator in ",\t":
        lines[1][2] = '"a ""quoted""\n,\tfield"'
    path = write("\n".join(separator.join(line) for line in lines).encode())
    found = table.load(path, columns=PLACED, separator=separator, header=False)
    assert triples(found) == ROWS


def test_ids_stay_as_they_are_written(write):
    path = write(b"0002844,7,0,1\n10,07,0,2\n")
    found = table.load(path, columns=PLACED, header=False)
    assert found.user_ids.to_list() == ["0002844", "10"]
    assert found.item_ids.to_list() == ["07", "7"]
    path = write(b'{"user":"007","item":7,"time":1}\n{"user":7,"item":"07","time":2}\n')
    found = table.load(path, columns=NAMED)
    assert found.user_ids.to_list() == ["007", "7"]


@pytest.mark.parametrize("text", [CSV, JSONL])
def test_blocks_do_not_show(write, monkeypatch, text):
    for size in (40, 64, 100):  # bytes: cuts fall inside records
        monkeypatch.setattr("create_jax.data.text.BLOCK", size)
        assert triples(table.load(write(text), columns=NAMED)) == ROWS
        bad = text.replace(b"7", b"seven") if text is CSV else text + b"{\n"
        assert message(write(bad)).startswith(":4: ")


def test_blocks_keep_quoted_line_breaks_together(write, monkeypatch):
    monkeypatch.setattr("create_jax.data.text.BLOCK", 24)
    text = b'user,item,note,time\na,x,"1\n2 ""3""\n",5\nb,y,"\n\n",6\nb,x,,7\n'
    assert triples(table.load(write(text), columns=NAMED)) == ROWS
    assert message(write(text + b"b,x,7\n")).startswith(
        ":9: found 3 fields; expected 4"
    )


def test_a_stray_quote_does_not_hide_the_rest(write, monkeypatch):
    monkeypatch.setattr("create_jax.data.text.BLOCK", 16)
    rest = b"b,y,,6\nb,x,,7\n" * 20
    found = message(
        write(rest + b'a,x,7" single,5\n' + rest), columns=PLACED, header=False
    )
    assert found.startswith(":41: found a quote that does not close")
    multiple = rest.replace(b",", b"::") + b'a::x::7" single::5\n'
    found = table.load(write(multiple), columns=PLACED, separator="::", header=False)
    assert triples(found)[0] == ("a", "x", 5)


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("s", ["1400000000", "1400000001.9", "1.400000002e9"]),
        ("ms", ["1400000000000", "1400000001900", "1400000002000"]),
        ("iso", ["2014-05-13", "2014-05-13T16:53:21Z", "2014-05-13 18:53:22.5+02:00"]),
    ],
)
def test_time_units(write, unit, written, tokyo):
    first = 1_399_939_200 if unit == "iso" else 1_400_000_000  # iso: midnight, UTC
    users = zip(("a", "b", "c"), written, strict=True)
    path = write("".join(f"{u},{u},,{t}\n" for u, t in users).encode())
    for time_unit in ("auto", unit):
        found = table.load(path, columns=PLACED, header=False, time_unit=time_unit)
        assert found.times.tolist() == [first, 1_400_000_001, 1_400_000_002]


def test_parquet_dates(tmp_path):
    path = str(tmp_path / "log")
    times = pl.Series("time", [0, 86_400_000]).cast(pl.Datetime("ms"))
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": times})
    for dtype in (pl.Datetime("ns"), pl.Date):
        frame.with_columns(times.cast(dtype)).write_parquet(path)
        assert table.load(path, columns=NAMED).times.tolist() == [0, 86_400]


def test_k_core_and_counts_reach_the_log(write):
    path = write(CSV)
    assert "2-core leaves no" in message(path, k_core=2)
    assert "found 2 users, 2 items, 3 inter" in message(path, counts=(9, 9, 9))


@pytest.mark.parametrize(
    ("bad", "line", "text"),
    [
        (b"\nb,y", 2, "found 0 fields; expected 4"),
        (b"a,x", 2, "found 2 fields; expected 4"),
        (b"a,x,,5,6", 2, "found 5 fields; expected 4"),
        (b'a,x,"not closed,5\nb,y,,6', 2, "found 3 fields; expected 4"),
        (b",x,,5", 2, "found no user"),
        (b'a,"",,5', 2, "found no item"),
        (b"a,x,,", 2, "found no time"),
        (b"a,x,,noon", 2, "time 'noon' does not parse; expected seconds"),
        (b"a,x,,nan", 2, "time 'nan' does not parse"),
        (b"a,x,,-1", 2, "time '-1' is negative"),
        (b"a,x,,1400000000000", 2, "time '1400000000000' lies in the future"),
        (b"a,\xff,,5", 2, "invalid utf-8"),
    ],
)
def test_names_the_bad_row_of_a_csv(write, bad, line, text):
    good = b"b,y,,5\n"
    path = write(good + bad + b"\n" + good * 9)
    found = message(path, columns=PLACED, header=False)
    assert found.startswith(f":{line}: ")
    assert text in found


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (b"hello", "no valid JSON"),
        (b'{"user": "a", "item": "x", "time": 5', "no valid JSON"),
        (b"[1, 2]", "JSON list; expected an object"),
        (
            b'{"user": "a", "asin": "x", "time": 5}',
            "no field 'item' for item; expected",
        ),
        (b'{"user": null, "item": "x", "time": 5}', "found no user"),
        (b'{"user": "a", "item": "x", "time": "soon"}', "time 'soon' does not parse"),
        (b'{"user": "a", "item": "x", "time": -5}', "time '-5' is negative"),
    ],
)
def test_names_the_bad_line_of_json(write, bad, text):
    found = message(write(JSONL[:-1] + b"\n\n" + bad + b"\n" + JSONL))
    assert found.startswith(":5: ")  # line 4 is blank
    assert text in found


def test_names_the_bad_row_of_parquet(tmp_path):
    path = str(tmp_path / "log")
    frame = pl.DataFrame({"user": ["a", "b"], "item": [1, 2], "time": [5, -5]})
    frame.write_parquet(path)
    assert message(path).startswith(": row 2: time '-5' is negative")
    assert (
        "found no column 'uid' for user; expected one of user, item, time"
        in message(path, columns=NAMED | {"user": "uid"})
    )
    frame.select(pl.all().implode()).write_parquet(path)
    assert "expected one value a row" in message(path)


def test_the_future_starts_tomorrow(write):
    soon = int(time.time()) + 3600
    path = write(f"a,x,,{soon}\nb,y,,5\n".encode())
    options = {"columns": PLACED, "header": False, "time_unit": "s"}
    assert table.load(path, **options).times.tolist() == [soon, 5]
    path = write(f"a,x,,{soon + 86_400}\nb,y,,5\n".encode())
    assert ":1: " in message(path, **options)


@pytest.mark.parametrize("column", ["uid", 3, -1])
def test_names_the_columns_there_are(write, column):
    text = message(write(CSV), columns=NAMED | {"user": column})
    assert text.startswith(f":1: found no column {column!r} for user; ")
    assert "expected one of time, item, user" in text


def test_refuses_odd_settings(write):
    assert "one of 0, 1, 2: " in message(write(CSV), header=False)
    assert "expected user, item and time" in message(write(CSV), columns={"user": 0})
    assert "empty separator" in message(write(CSV), separator="")
    assert "no column numbers" in message(write(JSONL), columns=PLACED)


def test_a_missing_or_empty_file(write, tmp_path):
    assert "No such file" in message(str(tmp_path / "none"))
    assert "Is a directory" in message(str(tmp_path))
    for content in (b"", b"\n\n", CSV[:15], gzip.compress(b"")):
        assert "the log is empty" in message(write(content))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_damaged_file(write, pack):
    packed = pack(b"user,item,time\n" + os.urandom(50_000).hex().encode())
    assert "cut off or damaged" in message(write(packed[:-1000]))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    if pack is gzip.compress:  # zstd writes no checksum unless told to
        assert "cut off or damaged" in message(write(flipped))


def test_damaged_parquet(tmp_path, write):
    path = tmp_path / "log"
    pl.DataFrame(ROWS, ["user", "item", "time"], orient="row").write_parquet(path)
    assert "cut off or damaged" in message(write(path.read_bytes()[:-20]))


def test_several_compressed_pieces_in_one_file(write):
    for pack in (gzip.compress, zstd):
        path = write(pack(CSV[:20]) + pack(CSV[20:]))
        assert triples(table.load(path, columns=NAMED)) == ROWS


RATED = NAMED | {"rating": "stars"}
STARS = ["4.5", "good", "2"]


def file_of_ratings(write, tmp_path, kind, stars):
    """A log of ROWS with these ratings, None = missing."""
    if kind == "csv":
        rows = zip(ROWS, stars, strict=True)
        lines = [f"{s or ''},{t},{u},{i}" for (u, i, t), s in rows]
        return write("\n".join(["stars,time,user,item", *lines]).encode())
    rows = [
        {"user": u, "item": i, "time": t} | ({} if s is None else {"stars": s})
        for (u, i, t), s in zip(ROWS, stars, strict=True)
    ]
    if kind == "jsonl":
        return write("\n".join(map(json.dumps, rows)).encode())
    path = str(tmp_path / "log")
    schema = {"user": str, "item": str, "time": int, "stars": str}
    pl.DataFrame(rows, schema).write_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_ratings_are_read_and_what_is_no_number_is_missing(write, tmp_path, kind):
    def load(stars, columns=RATED):
        path = file_of_ratings(write, tmp_path, kind, stars)
        found = table.load(path, columns=columns)
        assert triples(found) == ROWS
        return found.ratings

    for stars in (STARS, [4.5, None, 2] if kind == "jsonl" else ["4.5", None, "2"]):
        found = load(stars)
        assert str(found.dtype) == "float32"
        assert str(found.tolist()) == "[4.5, nan, 2.0]"
    for stars in (["", "good", "-"], [None] * 3):
        assert load(stars) is None
    assert load(STARS, NAMED) is None  # not asked for


def test_ratings_written_as_nan_are_missing(write):
    path = write(b"a,x,nan,5\nb,y,NaN,6\n")
    columns = PLACED | {"rating": 2}
    assert table.load(path, columns=columns, header=False).ratings is None


def test_ratings_of_a_parquet_number_and_of_a_column_without_a_name(write, tmp_path):
    path = str(tmp_path / "log")
    frame = pl.DataFrame(ROWS, ["user", "item", "time"], orient="row")
    for stars in ([5, None, 1], [5.0, float("nan"), 1.0]):
        frame.with_columns(pl.Series("stars", stars)).write_parquet(path)
        found = table.load(path, columns=RATED).ratings
        assert str(found.tolist()) == "[5.0, nan, 1.0]"
    path = write(b"a::x::5::5\nb::y::0::6\nb::x::::7\n")
    columns = PLACED | {"rating": 2}
    found = table.load(path, columns=columns, separator="::", header=False)
    assert str(found.ratings.tolist()) == "[5.0, 0.0, nan]"
    assert "found no column 'stars' for rating" in message(write(CSV), columns=RATED)
