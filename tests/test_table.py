import bz2
import gzip
import io
import json
import lzma
import os
import time
import uuid
import zipfile
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_interactions import triples

from create_jax.data import table
from create_jax.data.interactions import fingerprint
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
    assert text.isprintable() and len(text) <= 500
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
        monkeypatch.setattr("create_jax.data.container.BLOCK", size)
        assert triples(table.load(write(text), columns=NAMED)) == ROWS
        bad = text.replace(b"7", b"seven") if text is CSV else text + b"{\n"
        assert message(write(bad)).startswith(":4: ")


def test_blocks_keep_quoted_line_breaks_together(write, monkeypatch):
    monkeypatch.setattr("create_jax.data.container.BLOCK", 24)
    text = b'user,item,note,time\na,x,"1\n2 ""3""\n",5\nb,y,"\n\n",6\nb,x,,7\n'
    assert triples(table.load(write(text), columns=NAMED)) == ROWS
    assert message(write(text + b"b,x,7\n")).startswith(
        ":9: found 3 fields; expected 4"
    )


def test_a_stray_quote_does_not_hide_the_rest(write, monkeypatch):
    monkeypatch.setattr("create_jax.data.container.BLOCK", 16)
    rest = b"b,y,,6\nb,x,,7\n" * 20
    bad = rest + b'a,x,"7 single,5\n' + rest
    found = message(write(bad), columns=PLACED, header=False)
    assert found.startswith(":41: found a quote that does not close")
    assert "(--config.data.table.quoting=False)" in found
    found = table.load(write(bad), columns=PLACED, header=False, quoting=False)
    assert found.rows.read == 81
    inside = rest + b'a,x,7" single,5\n' + rest  # is a character of the field
    for text in (inside, inside.replace(b",", b"::")):
        found = table.load(write(text), columns=PLACED, header=False)
        assert triples(found)[0] == ("a", "x", 5)
        assert found.rows.read == 81


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("s", ["1400000000", "1400000001.9", "1.400000002e9"]),
        ("ms", ["1400000000000", "1400000001900.0", "1400000002000"]),
        ("us", ["1400000000000000", "1400000001900000", "1400000002000000"]),
        ("ns", ["1400000000000000000", "1400000001900000000", "1400000002000000000"]),
        (
            "iso",
            [
                "2014-05-13 16:53:20 UTC",
                "2014-05-13T16:53:21.9Z",
                "2014-05-13 18:53:22+02:00",
            ],
        ),
        ("iso", ["2014/05/13 16:53:20", "20140513T165321.9", "2014-W20-2T16:53:22"]),
        (
            "iso",
            [
                "2014-05-13 16:53:20 +0000 UTC",
                "2014-05-13 16:53:21.900 GMT",
                "2014-05-13 15:53:22 -01",
            ],
        ),
    ],
)
def test_times_of_any_unit_are_exact(write, unit, written, tokyo):
    users = zip(("a", "b", "c"), written, strict=True)
    path = write("".join(f"{u},{u},,{t}\n" for u, t in users).encode())
    for time_unit in ("auto", unit):
        found = table.load(path, columns=PLACED, header=False, time_unit=time_unit)
        assert found.per_second == 1000
        times = [1_400_000_000_000, 1_400_000_001_900, 1_400_000_002_000]
        assert found.times.tolist() == times


@pytest.mark.parametrize(
    ("written", "per_second", "times"),
    [
        (["1500000000000", "1500000001000"], 1, [1_500_000_000, 1_500_000_001]),
        (
            ["1500000000.000001", "1500000001"],
            10**6,
            [15 * 10**14 + 1, 1500000001000000],
        ),
        (["2017-07-14T02:40:00.000000001Z", "2017-07-14"], 10**9, [15 * 10**17 + 1]),
        (["20170714", "20170715"], 1, [1_499_990_400, 1_500_076_800]),
        (["201707", "201708"], 1, [1_498_867_200, 1_501_545_600]),
        (["201707140240", "201707140241"], 1, [1_500_000_000, 1_500_000_060]),
        (["20170714024000", "20170714024001"], 1, [1_500_000_000, 1_500_000_001]),
    ],
)
def test_the_unit_is_the_coarsest_that_is_exact(write, written, per_second, times):
    path = write(f"a,x,,{written[0]}\nb,y,,{written[1]}\n".encode())
    found = table.load(path, columns=PLACED, header=False)
    assert found.per_second == per_second
    assert found.times.tolist()[: len(times)] == times


def test_the_order_below_a_second_does_not_depend_on_the_file(write, tmp_path):
    moments = [1_500_000_000_000 + 300 * n for n in range(40)]
    rows = [(f"u{t % 7}", f"i{t % 11}", t) for t in moments]

    def load(rows, written=str):
        lines = (f"{u},{i},{written(t)}" for u, i, t in rows)
        text = "\n".join(["user,item,time", *lines])
        return table.load(write(text.encode()), columns=NAMED)

    def iso(time):
        moment = datetime.fromtimestamp(time / 1000, UTC)
        return moment.isoformat(timespec="milliseconds")

    path = str(tmp_path / "log.parquet")
    frame = pl.DataFrame(rows[::-1], ["user", "item", "time"], orient="row")
    frame.cast({"time": pl.Datetime("ms")}).write_parquet(path)
    logs = [load(rows), load(rows[::-1]), load(rows[::-1], iso)]
    logs += [load(rows[::-1], lambda t: f"{t // 1000}.{t % 1000:03}")]
    logs += [table.load(path, columns=NAMED)]
    assert len({fingerprint(log) for log in logs}) == 1
    assert sorted(triples(logs[1])) == sorted(rows)
    for n in range(7):
        assert (np.diff(logs[1].times[logs[1].users == n]) > 0).all()


def test_numbers_that_only_sort(write):
    def order(*written):
        rows = (f"u{n},i{n},,{t}" for n, t in enumerate(written))
        log = table.load(
            write("\n".join(rows).encode()),
            columns=PLACED,
            header=False,
            has_clock=False,
        )
        assert log.per_second == 1
        return log.times.tolist()

    assert order("-3", "0", "7") == [-3, 0, 7]
    assert order("1500000000000000000", "1500000000000000001")[1] % 10 == 1
    assert order("20170820", "20990101") == [20170820, 20990101]
    assert order("0.5", "-1e3", "0.25", "2") == [3, 1, 2, 4]
    assert order(str(2**64 + 1), str(2**64), "-1") == [3, 2, 1]
    assert order("2199-01-01", "1900-01-01") == [7226582400, -2208988800]
    text = message(
        write(b"a,x,,1\nb,y,,inf\n"), columns=PLACED, header=False, has_clock=False
    )
    assert text.startswith(":2: time 'inf' does not parse; expected a number")


@pytest.mark.parametrize(
    ("written", "line", "text"),
    [
        (
            ["20170820"] * 2 + ["20171341"],
            3,
            "'20171341' does not parse; expected a da",
        ),
        (
            ["1500000000000"] * 2 + ["1500000000"],
            3,
            "lies in 1970 and the others do not",
        ),
        (
            ["2017-08-20"] * 2 + ["2017-08-20 10:00 CET"],
            3,
            "does not parse; expected an",
        ),
        (
            ["2017-08-20"] * 2 + ["2017-08-20 10:00+99:99"],
            3,
            "does not parse; expected an",
        ),
        (["1969-12-31"] * 3, 1, "lies before 1970; expected an ISO date"),
        (["2" * 22] * 3, 1, "does not parse; expected nanoseconds"),
    ],
)
def test_names_the_row_whose_time_is_of_another_kind(write, written, line, text):
    rows = (f"u{n},i{n},,{t}" for n, t in enumerate(written))
    found = message(write("\n".join(rows).encode()), columns=PLACED, header=False)
    assert found.startswith(f":{line}: ")
    assert text in found


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
        (b"\nb,y", 3, "found 2 fields; expected 4"),
        (b"a,x", 2, "found 2 fields; expected 4"),
        (b"a,x,,5,6", 2, "found 5 fields; expected 4"),
        (b'a,x,"not closed,5\nb,y,,6', 2, "found a quote that does not close"),
        (
            b'a,x,"a \\" b",5',
            2,
            "found text after a closing quote; expected quotes insi",
        ),
        (b'a,"Weird Al" Y,,5', 2, "found text after a closing quote"),
        (b",x,,5", 2, "found no user"),
        (b'"  ",x,,5', 2, "found no user"),
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
        (b'{"user": "a", "item": " ", "time": 5}', "found no item"),
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
    (tmp_path / "folder").mkdir()
    assert "a folder and holds nothing" in message(str(tmp_path / "folder"))
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


def test_damage_inside_the_texts_of_parquet(write, capfd):
    whole = parquet(user=["aaaa", "bbbb"], item=["x", "y"], time=["2017-08-20"] * 2)
    for good, key in ((b"aaaa", "user"), (b"2017", "time")):
        assert good in whole
        text = message(write(whole.replace(good, b"\xaa" * 4)))
        assert f"values that are no text in column '{key}' for {key}" in text
    assert capfd.readouterr().err == ""


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

    spaced = [" 4.5", " good ", "2 "]
    numbers = [4.5, None, 2] if kind == "jsonl" else ["4.5", None, "2"]
    for stars in (STARS, spaced, numbers):
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


# --- text of many forms ---------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", "\t", ";", "|", "::"])
@pytest.mark.parametrize("header", [True, False])
def test_finds_the_separator(write, mark, header):
    lines = [f"{u}{mark}{i}{mark}Hello, W; or|ld{mark}{t}" for u, i, t in ROWS]
    lines = [line.replace(mark * 2, mark) for line in lines]
    if mark in ",;|":
        lines = [line.replace("Hello, W; or|ld", "4") for line in lines]
    text = "\n".join([mark.join(["user", "item", "note", "time"])] * header + lines)
    columns = NAMED if header else PLACED
    assert triples(
        table.load(write(text.encode()), columns=columns, header=header)
    ) == (ROWS)


def test_the_separator_is_that_which_shows_the_columns(write):
    """And not one that stands in a name more often."""
    text = b"uid;sku, if, any, so;ts\na;x;5\nb;y;6\n"
    columns = {"user": "uid", "item": "sku, if, any, so", "time": "ts"}
    assert table.load(write(text), columns=columns).rows.read == 2
    columns |= {"item": 1}
    assert table.load(write(text), columns=columns).rows.read == 2


@pytest.mark.parametrize("written", [r"\t", "\t", r"\x09"])
def test_a_separator_may_be_written_as_an_escape(write, written):
    text = CSV.replace(b",", b"\t")
    assert triples(table.load(write(text), columns=NAMED, separator=written)) == ROWS


FORMS = {
    "blank lines": b"\n\ntime,item,user\n5,x,a\n\n6,y,b\n   \n,,\n7,x,b\n\n\n",
    "trailing, in rows": b"time,item,user\n5,x,a,\n6,y,b,\n7,x,b,\n",
    "trailing, in the header": b"time,item,user,\n5,x,a\n6,y,b\n7,x,b\n",
    "trailing, in some rows": b"time,item,user\n5,x,a\n6,y,b,,,\n7,x,b,\n",
    "trailing, in all": b"time,item,user,,\n5,x,a,,\n6,y,b,,\n7,x,b\n",
    "spaces in the header": b"time, item, user\n5,x,a\n6,y,b\n7,x,b\n",
    "spaces around times": b"time,item,user\n 5,x,a\n6 ,y,b\n\t7,x,b\n",
    "line ends of a Mac": CSV.replace(b"\n", b"\r"),
    "mixed line ends": b"time,item,user\r\n5,x,a\n6,y,b\r\n7,x,b",
    "all quoted": b'"time","item","user"\r\n"5","x","a"\n"6","y","b"\r\n"7","x","b"\n',
    "a return in a field": b"time,n,item,user\n5,1\r2,x,a\n6,,y,b\r\n7,,x,b\n",
    "quotes inside fields": b'time,n,item,user\n5,7",x,a\n6,a "b" c,y,b\n7,",",x,b\n',
    "other bytes elsewhere": b"time,n,item,user\n5,\xff,x,a\n6,,y,b\n7,,x,b\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [1 << 24, 30])
def test_ordinary_forms_of_csv(write, monkeypatch, form, pieces):
    monkeypatch.setattr("create_jax.data.container.BLOCK", pieces)
    found = table.load(write(FORMS[form]), columns=NAMED)
    assert triples(found) == ROWS
    assert found.rows == (3, 0, 0)


def test_blank_lines_do_not_move_the_line_that_is_named(write):
    bad = b"\n" + FORMS["blank lines"] + b'8,"x\ny",b,\n9,x\n'
    assert message(write(bad)).startswith(":15: found 2 fields; expected 3")


@pytest.mark.parametrize("between", [b"", b"a\tz\t-\t6\n" * 3])
def test_two_stray_quotes_swallow_no_rows(write, between):
    text = b'user\titem\tby\ttime\na\tx\t"Q\t5\n' + between + b'b\ty\tP"\t7\n'
    found = message(write(text))
    assert found.startswith(f":2: found a quoted field over {2 + between.count(b'6')} ")
    assert "quoting=False" in found
    prose = (
        b'user,item,time,text\na,x,5,"good, really,\nat last, 2, good"\nb,y,6,"7\n8"\n'
    )
    assert table.load(write(prose), columns=NAMED).rows.read == 2


def test_a_row_that_is_cut_off_is_no_row(write):
    text = b"user,item,time,note\na,x,5,n\nb,y,6,n\nb,x,17"
    assert message(write(text)).startswith(":4: found 3 fields; expected 4")


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]
)
def test_encodings(write, monkeypatch, encoding):
    monkeypatch.setattr("create_jax.data.container.BLOCK", 25)
    text = CSV.decode().replace("x", "é").encode(encoding)
    rows = [("a", "é", 5), ("b", "y", 6), ("b", "é", 7)]
    for pack in (bytes, gzip.compress):
        path = write(pack(text))
        assert triples(table.load(path, columns=NAMED, encoding=encoding)) == rows
        if encoding in ("utf-16", "utf-32"):  # a byte order mark says so
            assert triples(table.load(path, columns=NAMED)) == rows
        else:
            assert "--config.data.table.encoding=" in message(path)


def test_bytes_that_are_not_of_the_encoding(write):
    text = message(write(CSV + b"8,\xe9,b\n"), encoding="shift-jis")
    assert text.startswith(":5: found bytes that are not shift-jis")
    assert message(write(CSV + b"8,a\0,b\n")).startswith(":5: found a zero byte")


def test_two_columns_of_one_name(write, tmp_path):
    assert "found 2 columns of the name 'user'" in message(
        write(b"user,item,user,time\na,x,b,5\n")
    )
    path = write(b"user,n,n,item,time\na,1,2,x,5\nb,1,2,y,6\n")
    assert table.load(path, columns=NAMED).n_users == 2  # not those that are asked for
    path = str(tmp_path / "log.parquet")
    arrays = [pa.array(["a", "b"])] * 3 + [pa.array([1, 2])]
    pq.write_table(pa.table(arrays, ["user", "item", "user", "time"]), path)
    assert "found 2 columns of the name 'user'" in message(path)


def test_half_a_character_is_no_text(write):
    """Polars reads each as a zero byte: two ids would be one."""
    row = '{"user":"%s","item":"x","time":1}\n'
    good, bad = write((row % r"a\u0000b" + row % "c").encode()), row % r"a\ud83d"
    assert triples(table.load(good, columns={**NAMED, "item": "user"}))[0][0] == "a\0b"
    found = message(write((row % r"\ud83d\ude00" + bad).encode()))
    assert found.startswith(":2: found half a character in the field 'user', 'a")


def test_json_keeps_lists_and_constants_out(write):
    assert "found a list in the field 'item'; expected one value a row" in message(
        write(JSONL + b'{"user": "c", "item": ["x", "y"], "time": 8}\n')
    )
    text = message(write(JSONL + b'{"user": {"id": 1}, "item": 1, "time": 8}\n'))
    assert text.startswith(":4: found an object in the field 'user'")
    assert "NaN is none of its values" in message(
        write(JSONL + b'{"user": NaN, "item": 1, "time": 8}\n')
    )
    found = table.load(
        write(JSONL + b'{"user": "[c]", "item": "{x}", "time": 8}\n'), columns=NAMED
    )
    assert triples(found)[0] == ("[c]", "{x}", 8)
    assert "found a JSON list" in message(write(b'[{"user": 1, "item": 2, "time": 3}]'))


def test_a_word_for_nothing_among_numbers_is_no_id(write):
    for word in ("NaN", "null", "NA", "<NA>"):
        text = f"user,item,time\n1,x,5\n{word},y,6\n2.0,x,7\n".encode()
        assert f"found no user but '{word}' in some rows" in message(write(text))
    found = table.load(write(b"user,item,time\nNa,x,5\nBob,y,6\n"), columns=NAMED)
    assert found.user_ids.to_list() == ["Bob", "Na"]


def test_messages_stay_short(write):
    names = ",".join(f"a rather long name {n}" for n in range(999)).encode()
    assert "one of a rather long name 0" in message(write(names + b"\n"))
    row = {f"field {n}" * 9: n for n in range(99)}
    assert "found no field 'user'" in message(write(json.dumps(row).encode()))
    assert "does not parse" in message(write(b"user,item,time\na,b," + b"x" * 9999))


# --- files that are something else ----------------------------------------------------


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("log.csv", content)
    return file.getvalue()


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def arrow(content: bytes) -> bytes:
    file = io.BytesIO()
    pl.DataFrame({"user": [1]}).write_ipc(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (bz2.compress, "a bzip2 file"),
        (lzma.compress, "an xz file"),
        (lambda text: lzma.compress(text, lzma.FORMAT_ALONE), "an lzma file"),
        (zipped, "a zip archive"),
        (lambda text: b"7z\xbc\xaf\x27\x1c\0\4" + text, "a 7z archive"),
        (lambda text: gzip.compress(gzip.compress(text)), "a gzip file inside a gzip"),
        (lambda text: gzip.compress(parquet(user=[1])), "a Parquet file inside a gzip"),
        (
            lambda text: zstd(zipped(text)),
            "a zip archive (or a spreadsheet) inside a zst",
        ),
        (arrow, "an Arrow (Feather) file"),
        (lambda text: b"<!DOCTYPE html><title>404</title>", "a web page"),
    ],
)
def test_says_what_the_file_is(write, pack, kind):
    assert f": found {kind}" in message(write(pack(CSV)))


def test_text_that_begins_as_parquet_does_is_text(write):
    """Of an encrypted file the length of a part follows, in four bytes."""
    for name in (b"PARENT", b"PARE", b"PAR1"):
        path = write(CSV.replace(b"time", name))
        named = NAMED | {"time": name.decode()}
        assert triples(table.load(path, columns=named, format="csv")) == ROWS
    path = write(b"PARE\x2c\x01\0\0" + bytes(range(256)))
    assert ": found an encrypted Parquet file" in message(path)
    path = write(b"PAR1\x15\x04" + bytes(range(256)))
    assert ": found a Parquet file" in message(path, format="csv")


# --- types ----------------------------------------------------------------------------

MOMENT = datetime(2017, 8, 20, 18, 31, 36)
IDS = {
    "text": (pa.array(["a", "b"]), ["a", "b"]),
    "numbers": (pa.array([7, 10], pa.uint64()), ["10", "7"]),
    "floats": (pa.array([1.0, 2.5]), ["1.0", "2.5"]),
    "half floats": (pa.array([1.0, 2.5]).cast(pa.float16()), ["1.0", "2.5"]),
    "truth": (pa.array([True, False]), ["false", "true"]),
    "decimals": (pa.array([Decimal("1.50"), Decimal("2.00")]), ["1.50", "2.00"]),
    "wide decimals": (
        pa.array([Decimal(1), Decimal(2)], pa.decimal256(60, 1)),
        ["1.0", "2.0"],
    ),
    "categories": (pa.array(["b", "a"]).dictionary_encode(), ["a", "b"]),
    "bytes of text": (pa.array([b"a", b"b"]), ["a", "b"]),
    "fixed bytes": (pa.array([b"ab", b"\xff\0"], pa.binary(2)), ["6162", "ff00"]),
    "uuids": (
        pa.array([uuid.UUID(int=1).bytes, uuid.UUID(int=2).bytes], pa.uuid()),
        [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))],
    ),
    "dates": (
        pa.array([date(2020, 1, 2), date(2020, 1, 3)]),
        ["2020-01-02", "2020-01-03"],
    ),
    "hours": (pa.array([clock(1, 2), clock(3, 4)]), ["01:02:00", "03:04:00"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_type_that_has_a_text(write, kind):
    column, names = IDS[kind]
    path = write(parquet(user=column, item=column, time=[5, 6]))
    found = table.load(path, columns=NAMED)
    assert found.user_ids.to_list() == found.item_ids.to_list() == names


@pytest.mark.parametrize(
    "column",
    [
        pa.array([MOMENT] * 2, pa.timestamp("s")),
        pa.array([MOMENT] * 2, pa.timestamp("ns")),
        pa.array([MOMENT] * 2, pa.timestamp("us", "UTC")),
        pa.array([MOMENT] * 2, pa.timestamp("ms", "+02:00")),
        pa.array([MOMENT] * 2, pa.timestamp("ms", "Asia/Tokyo")),
        pa.array([1503253896.0] * 2),
        pa.array([Decimal("1503253896.000")] * 2),
        pa.array(["2017-08-20 18:31:36 UTC"] * 2),
        pa.array(["2017-08-20T18:31:36Z"] * 2).dictionary_encode(),
    ],
)
def test_times_of_any_type_that_has_one(write, column):
    path = write(parquet(user=[1, 2], item=[1, 2], time=column))
    found = table.load(path, columns=NAMED)
    assert (found.times.tolist(), found.per_second) == ([1_503_253_896] * 2, 1)


@pytest.mark.parametrize("key", ["user", "item"])
@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_float_that_is_no_number_is_no_id(write, key, missing):
    columns = {"user": [1, 2, 3], "item": [1, 2, 3], "time": [1, 2, 3]}
    columns[key] = [1.0, 2.0, missing]
    assert f": row 3: found no {key}" in message(write(parquet(**columns)))


@pytest.mark.parametrize(
    ("key", "column", "text"),
    [
        ("user", pa.array([timedelta(1)] * 2), "found duration[us] in column 'user'"),
        (
            "item",
            pa.array([{"a": 1}] * 2),
            "found Struct({'a': Int64}) in column 'item'",
        ),
        (
            "item",
            pa.array([["a"]] * 2),
            "found List(String) in column 'item' for item; e",
        ),
        (
            "user",
            pa.array([b"\xff"] * 2),
            "found values that are no text in column 'user'",
        ),
        ("user", pa.nulls(2), "row 1: found no user"),
        ("time", pa.array([True, False]), "found bool in column 'time' for time"),
        ("time", pa.array([timedelta(1)] * 2), "these only sort (has_clock=False)"),
        ("time", pa.array([clock(1)] * 2), "these only sort (has_clock=False)"),
        ("time", pa.nulls(2), "row 1: found no time"),
    ],
)
def test_types_that_have_neither_text_nor_time(write, key, column, text):
    columns = {"user": [1, 2], "item": [1, 2], "time": [1, 2]} | {key: column}
    assert text in message(write(parquet(**columns)))


@pytest.mark.parametrize("key", ["user", "time"])
@pytest.mark.parametrize(
    "kind", [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.date32()]
)
def test_moments_beyond_all_years(write, capfd, key, kind):
    """polars panics at their text."""
    size = 32 if kind == pa.date32() else 64
    far = pa.array([0, 2 ** (size - 2)], f"int{size}").cast(kind)
    columns = {"user": [1, 2], "item": [1, 2], "time": [1, 2]} | {key: far}
    for has_clock in (True, False):
        text = message(write(parquet(**columns)), has_clock=has_clock)
        assert text.startswith(": row 2: ")
    assert capfd.readouterr().err == ""


def test_durations_and_hours_sort(write):
    missing = pa.array([timedelta(1), None])
    path = write(parquet(user=["a", "b"], item=[1, 2], time=missing))
    assert ": row 2: found no time" in message(path, has_clock=False)
    for column in (
        pa.array([timedelta(2), timedelta(1)]),
        pa.array([clock(2), clock(1)]),
    ):
        path = write(parquet(user=["a", "b"], item=[1, 2], time=column))
        first, second = table.load(path, columns=NAMED, has_clock=False).times
        assert first == 2 * second


def test_a_folder_of_parquet_parts(tmp_path):
    folder = tmp_path / "log"
    for n, (user, item, moment) in enumerate(ROWS):
        part = folder / f"day={n}" / f"part-{n}.parquet"
        part.parent.mkdir(parents=True)
        part.write_bytes(parquet(user=[user], item=[item], time=[moment]))
    (folder / "_SUCCESS").touch()
    (folder / "day=0" / ".part.crc").write_bytes(b"crc")
    assert triples(table.load(str(folder), columns=NAMED)) == ROWS
    part.write_bytes(parquet(user=["a"], item=["x"], time=[-5]))
    assert "part-2.parquet: row 1: time '-5' is negative" in message(str(folder))
    part.write_bytes(b"")
    assert "holds part-2.parquet; expected a file, or a folder" in message(str(folder))


def test_parts_in_which_one_id_has_two_texts(tmp_path):
    """As where pandas has written a part with a missing user, and dropped its row."""
    kinds = {
        "a": pa.array([1, 2]),
        "b": pa.array(["1", "2"], pa.large_string()),
        "c": pa.array(["1", "2"]).dictionary_encode(),
        "d": pa.array([1.0, 2.0]),
    }
    for name, users in kinds.items():
        part = parquet(user=users, item=[1, 2], time=[5, 6])
        (tmp_path / f"{name}.parquet").write_bytes(part)
    text = message(str(tmp_path))
    assert "d.parquet: found double in column 'user' for user, and int64 in a" in text
    (tmp_path / "d.parquet").unlink()
    assert table.load(str(tmp_path), columns=NAMED).user_ids.to_list() == ["1", "2"]


@pytest.mark.parametrize(
    "times", [pa.array([5, 6], pa.duration("us")), pa.array([5, 6])]
)
def test_parts_whose_times_sort_by_other_units(tmp_path, times):
    for name, some in (("a", pa.array([7, 8], pa.duration("ms"))), ("b", times)):
        part = parquet(user=["a", "b"], item=[1, 2], time=some)
        (tmp_path / f"{name}.parquet").write_bytes(part)
    text = message(str(tmp_path), has_clock=False)
    assert "as times after Duration(time_unit='ms'); expected one kind" in text


def test_no_part_of_a_folder_is_missed(tmp_path, monkeypatch):
    folder, other = tmp_path / "log", tmp_path / "disk"
    for place in (folder / "day=0", other):
        place.mkdir(parents=True)
        (place / "a.parquet").write_bytes(parquet(user=["a"], item=["x"], time=[5]))
    (folder / "day=1").symlink_to(other)
    assert "day=1: is a link to a folder" in message(str(folder))
    (folder / "day=1").unlink()
    (folder / "b.parquet").symlink_to(other / "a.parquet")
    assert [p.name for p in table.parts(str(folder))] == ["b.parquet", "a.parquet"]
    (folder / "b.parquet").unlink()
    (folder / "b.parquet").symlink_to(other / "not fetched")
    with pytest.raises(FileNotFoundError):
        table.load(str(folder), columns=NAMED)
    (folder / "b.parquet").unlink()

    def refused(place):
        if str(place).endswith("day=0"):
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        table.load(str(folder), columns=NAMED)


# --- anything at all ------------------------------------------------------------------

CELLS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(1, 3),
    st.floats(),
    st.sampled_from(
        ["", "a", "1500000000", "2017-08-20 18:31:36 UTC", "NaN", " ", "20170820"]
    ),
    st.text(max_size=5),
    st.none(),
)
COLUMNS = st.sampled_from(
    [
        *[column for column, _ in IDS.values()],
        *[
            pa.array([MOMENT] * 2, pa.timestamp(u, z))
            for u in ("ms", "ns")
            for z in (None, "UTC")
        ],
        *[pa.array([timedelta(1), None]), pa.array([clock(1), None]), pa.nulls(2)],
        *[pa.array([[1], None]), pa.array([{"a": 1}, None]), pa.array([b"\xff", b"a"])],
        pa.array([2**63 - 1, -(2**63)]),
        pa.array([float("nan"), 1e300]),
        pa.array([Decimal("1e30"), None]),
        pa.array([datetime(1, 1, 1), datetime(9999, 1, 1)], pa.timestamp("us")),
        pa.array([-(2**62), 2**62]).cast(pa.timestamp("us")),
        pa.array([-(2**31), 2**31 - 1], pa.int32()).cast(pa.date32()),
    ]
)
fuzz = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def reads_or_refuses(path, columns=NAMED, **options):
    """The contract: a log, or one printable line of at most 500 characters."""
    try:
        log = table.load(path, columns=columns, **options)
        assert len(log.users) == len(log.times) > 0
    except InputError as error:
        text = str(error)
        assert text.isprintable() and 0 < len(text) <= 500


@fuzz
@given(st.sampled_from(["user", "item", "time", "stars"]), COLUMNS, st.booleans())
def test_any_types_are_read_or_refused_in_a_line(write, key, column, has_clock):
    plain = dict.fromkeys(("user", "item", "time", "stars"), [1, 2])
    path = write(parquet(**plain | {key: column}))
    reads_or_refuses(path, columns=RATED, has_clock=has_clock)


@fuzz
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6),
    st.sampled_from(["csv", "jsonl"]),
    st.booleans(),
    st.booleans(),
)
def test_any_cells_are_read_or_refused_in_a_line(write, rows, form, quoting, has_clock):
    if form == "csv":
        lines = [",".join("" if c is None else str(c) for c in row) for row in rows]
        lines = ["user,item,time", *lines]
    else:
        lines = [json.dumps(dict(zip(NAMED, row, strict=True))) for row in rows]
    content = "\n".join(lines).encode(errors="replace")
    reads_or_refuses(write(content), quoting=quoting, has_clock=has_clock)


GOOD = [
    CSV * 3,
    b'user,item,n,time\na,x,"1 ""2""\n",5\nb,y,,6\n',
    JSONL,
    gzip.compress(CSV),
    zstd(CSV),
    CSV.decode().encode("utf-16"),
    parquet(user=["a", "b", "b"], item=[1, 2, 1], time=[5, 6, 7]),
    parquet(user=IDS["uuids"][0], item=IDS["categories"][0], time=[MOMENT] * 2),
]


@fuzz
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
    st.floats(0, 1),
    st.binary(max_size=4),
)
def test_any_damage_is_refused_in_a_line(write, content, changes, cut, tail):
    damaged = bytearray(content)
    for place, byte in changes:
        damaged[int(place * (len(damaged) - 1))] = byte
    if cut < 0.9:
        damaged = damaged[: int(cut / 0.9 * len(damaged))]
    reads_or_refuses(write(bytes(damaged) + tail))
