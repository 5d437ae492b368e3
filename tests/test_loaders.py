import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_interactions import triples

from create_jax import config_file, export, protocol
from create_jax.configs import table as table_config
from create_jax.data import (
    amazon,
    movielens,
    movietweetings,
    sources,
    table,
    titles,
    yambda,
)
from create_jax.data.interactions import fingerprint
from create_jax.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the real data in ../shared/data"
)
RATINGS = b"1::20::5::978300760\n1::3::4::978300760\n02::3::1::978300761\n"
ROWS = [("02", "3", 978300761), ("1", "20", 978300760), ("1", "3", 978300760)]


def counts_of(name: str) -> tuple[int, int, int]:
    """Users, items and interactions that a config insists on."""
    return config_file.load(name).data.counts


def message(load, *args, **options):
    with pytest.raises(InputError) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_amazon_reads_official_lines(tmp_path):
    path = str(tmp_path / "reviews.json.gz")
    lines = [
        '{"reviewerID": "A2", "asin": "B1", "helpful": [0], "reviewText": "x\\n\\"y", '
        '"overall": 1.0, "summary": "\\u00e9", "unixReviewTime": 86400, "reviewTime":'
        ' "01 2, 1970"}',
        '{"reviewerID": "A1", "asin": "0002", "unixReviewTime": 0}',
    ]
    Path(path).write_bytes(gzip.compress("\n".join(lines).encode()))
    assert triples(amazon.load(path)) == [("A1", "0002", 0), ("A2", "B1", 86400)]
    Path(path).write_bytes(gzip.compress(lines[0].replace("asin", "item").encode()))
    assert "reviews.json.gz:1: found no field 'asin'" in message(amazon.load, path)


def test_movielens_finds_ratings_in_file_folder_and_zip(tmp_path):
    folder = tmp_path / "data" / "ml-1m"
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_bytes(RATINGS)
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("any/ratings.dat", RATINGS)
    for path in (folder / "ratings.dat", folder, folder.parent, archive):
        assert triples(movielens.load(str(path))) == ROWS


def test_movielens_names_what_is_wrong(tmp_path):
    path = tmp_path / "ml-1m.zip"
    assert "No such file" in message(movielens.load, str(path))
    assert "found no ratings.dat" in message(movielens.load, str(tmp_path))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ml-1m/ratings.dat", RATINGS.replace(b"::1::", b"::"))
    text = message(movielens.load, str(path))
    assert text.startswith(f"{path}/ml-1m/ratings.dat:3: found 3 fields; expected 4")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"978300760", b"978300769"))  # the checksum fails
    assert "cut off or damaged (Bad CRC-32" in message(movielens.load, str(path))
    path.write_bytes(whole[:-30])
    assert "cut off or damaged" in message(movielens.load, str(path))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ml-1m/README", "")
    assert "found ml-1m/README; expected ratings" in message(movielens.load, str(path))


def test_yambda_reads_flat_likes(tmp_path):
    path = str(tmp_path / "likes.parquet")
    likes = {"uid": [3, 3, 20], "item_id": [7, 7, 8], "timestamp": [5, 10, 5]}
    frame = pl.DataFrame(likes).cast(pl.UInt32)
    frame = frame.with_columns(is_organic=pl.lit(1, pl.UInt8))
    frame.write_parquet(path)
    assert triples(yambda.load(path)) == [("20", "8", 5), ("3", "7", 5)]
    assert len(yambda.load(path, drop_repeats=False).items) == 3
    frame.group_by("uid").agg(pl.all()).write_parquet(path)
    assert "bring the flat file" in message(yambda.load, path)


def test_movietweetings_comes_with_the_package():
    log = movietweetings.load(counts=(16_554, 10_506, 100_000))
    assert (log.times.min(), log.times.max()) == (1_362_062_307, 1_378_067_265)
    core = movietweetings.load(k_core=5)
    assert (core.n_users, core.n_items, len(core.items)) == (4_333, 2_414, 68_055)
    names = movietweetings.titles()
    assert names["0002844"] == "Fantômas - À l'ombre de la guillotine (1913)"
    assert set(log.item_ids) <= set(names)


def test_describe_accounts_for_every_row(tmp_path):
    rows = [
        f"u{u},i{t // 2},{1_500_000_000_000 + 60_001 * t}"
        for t in range(9)
        for u in range(20)
    ]
    text = "\n".join(["user,item,time", *rows, "v,x,1500000000000"])
    (tmp_path / "log.csv").write_text(text)
    config = table_config.get_config("mostpop")
    config.data.path, config.data.k_core = str(tmp_path / "log.csv"), 2
    config.split.validation = "none"
    log = protocol.load(config)
    data = protocol.describe(config, log, protocol.make_split(config, log))["data"]
    assert data["rows"] == {
        "read": 181,
        "dropped_as_repeats": 80,
        "dropped_by_k_core": 1,
        "kept": 100,
    }
    assert data["times"] == ["2017-07-14T02:40:00.000", "2017-07-14T02:48:00.008"]
    config.data.table.has_clock = False
    config.split.kind = "leave_one_out"
    split = protocol.make_split(config, log)
    assert "times" not in protocol.describe(config, log, split)["data"]


def test_locate(tmp_path, monkeypatch):
    monkeypatch.setenv("CREATE_JAX_DATA", str(tmp_path))
    expected = tmp_path / "ml-1m" / "ml-1m.zip"
    text = message(sources.locate, "ml1m", "")
    assert text.startswith(f"{expected}: no such file; ")
    assert "https://files.grouplens.org/datasets/movielens/ml-1m.zip" in text
    assert text.endswith("run `python -m create_jax.fetch ml1m`")
    expected.parent.mkdir()
    expected.touch()
    assert sources.locate("ml1m", "") == str(expected)
    assert sources.locate("ml1m", str(tmp_path)) == str(tmp_path)
    assert "check the path" in message(sources.locate, "ml1m", str(tmp_path / "none"))
    assert sources.locate("movietweetings", "") == ""
    assert "expected one of beauty, sports" in message(sources.locate, "beaty", "")
    monkeypatch.delenv("CREATE_JAX_DATA")
    monkeypatch.chdir(tmp_path)
    assert message(sources.locate, "beauty").startswith("data/amazon-beauty/reviews_")


@needs_data
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("beauty", 1023840000, 1406073600), ("sports", 1015459200, 1406073600)],
)
def test_real_amazon(name, first, last):
    path = SHARED / sources.SOURCES[name].path
    log = amazon.load(str(path), k_core=5, counts=counts_of(name))
    assert len(log.items) == counts_of(name)[2]  # 5-core already, no repeats
    assert (log.times.min(), log.times.max()) == (first, last)


@needs_data
def test_real_amazon_office_after_the_table():
    path = SHARED / sources.SOURCES["office"].path
    amazon.load(str(path), counts=counts_of("office"))
    assert "found 4,905 users" in message(amazon.load, str(path), counts=(1, 2, 3))


@needs_data
def test_real_clothing_by_position():
    log = table.load(
        str(SHARED / "amazon-clothing" / "order_only_NO_TIMESTAMPS.parquet"),
        columns={"user": "user_id", "item": "item_id", "time": "position"},
        time_unit="s",
        counts=counts_of("clothing"),
    )
    starts = np.flatnonzero(np.diff(log.users, prepend=-1))
    assert (log.times[starts] == 0).all()
    assert log.times.max() == np.bincount(log.users).max() - 1


@needs_data
def test_real_movielens():
    path = SHARED / "ml-1m" / "ml-1m-rebuilt.zip"
    log = movielens.load(str(path), counts=counts_of("ml1m"))
    assert (log.times.min(), log.times.max()) == (956703932, 1046454590)
    # User 1 rated 1270, 1721, 1022 (lines 23, 28, 38) at one and the same second.
    first = [item for user, item, _ in triples(log) if user == "1"][:5]
    assert first == ["3186", "1270", "1721", "1022", "2340"]
    core = movielens.load(str(path), k_core=5)
    assert (core.n_items, len(core.items)) == (3_416, 999_611)
    assert fingerprint(core) != fingerprint(log)


def test_titles_of_a_file_of_any_form(tmp_path):
    csv, tsv, lines, parquet = (tmp_path / f"t.{x}" for x in ("csv", "tsv", "a", "b"))
    csv.write_text('title,id,more\n"Up, Up",007,1\nÉté,8,2\n,9,3\n')
    tsv.write_text("id\ttitle\n007\tUp, Up\n8\tÉté\n")
    lines.write_text('{"id": "007", "title": "Up, Up"}\n{"id": "8", "title": "Été"}\n')
    pl.DataFrame({"id": ["007", "8"], "title": ["Up, Up", "Été"]}).write_parquet(
        parquet
    )
    for path in (csv, tsv, lines, parquet):
        assert titles.read(str(path)) == {"007": "Up, Up", "8": "Été"}
    pl.DataFrame({"id": [7, 8], "title": ["a", None]}).write_parquet(parquet)
    assert titles.read(str(parquet)) == {"7": "a"}


def test_a_quote_in_a_title_joins_no_lines(tmp_path):
    rows = '1\t"Heroes', '2\t"Weird Al" Y', '3\t"A ""B"" C"', '4\tD"'
    (tmp_path / "t.tsv").write_text("\n".join(["id\ttitle", *rows, ""]))
    expected = {"1": '"Heroes', "2": '"Weird Al" Y', "3": 'A "B" C', "4": 'D"'}
    assert titles.read(str(tmp_path / "t.tsv")) == expected


def test_titles_have_the_ids_of_a_log_in_the_same_form(tmp_path):
    path, columns = tmp_path / "log", {"user": "id", "item": "id", "time": "time"}
    numbers = [1.0, 2.5, *range(3, 120)]
    lines = [{"id": n, "title": n, "time": 1} for n in (*numbers, "x")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def same() -> int:
        (block,) = table.stream(str(path), columns=columns).blocks
        found = titles.read(str(path))
        assert list(found) == block["item"].to_list()
        return len(found)

    assert same() == 120
    for ids in (
        pa.array([bytes(15) + b"1"], pa.binary(16)),
        pa.array([7.0]),
        pa.array([b"a"]).dictionary_encode(),
    ):
        written = pa.table({"id": ids, "title": ["T"], "time": [1]})
        pq.write_table(written, path)
        assert same() == 1


def test_titles_of_other_items_are_said(capsys):
    assert list(export.titles_of(["", "a", "b"], {"b": "B"})) == ["", "", "B"]
    assert export.titles_of(["", "a"], {}) is None and not capsys.readouterr().out
    assert export.titles_of(["", "1"], {"1.0": "One"}) is None
    assert "none of 1 ids with one, '1.0' among" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "found columns a, b; expected id and title"),
        ('{"id": 1}\n', "found columns id; expected id and title"),
        ("", "cannot be read"),
        ("PAR1 and no more", "cannot be read"),
        ('{"id": 1', "cannot be read"),
        (None, "No such file or directory; expected a file of titles"),
    ],
)
def test_titles_that_cannot_be_read_are_one_line(tmp_path, text, message):
    path = tmp_path / "titles"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        titles.read(str(path))
    assert "\n" not in str(caught.value)


def test_titles_of_movielens(tmp_path):
    movies = "1::Toy Story (1995)::Animation\n2::Été (1)::Drama\n".encode("latin-1")
    movies += b"3::Well\x85 (2)::Drama\r\n"  # no end of a line
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/movies.dat", movies)
    expected = {"1": "Toy Story (1995)", "2": "Été (1)", "3": "Well\x85 (2)"}
    assert movielens.titles(str(tmp_path / "ml-1m.zip")) == expected
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("movies.dat", movies)
    assert movielens.titles(str(tmp_path / "flat.zip")) == expected
    (tmp_path / "movies.dat").write_bytes(movies)
    assert movielens.titles(str(tmp_path)) == expected
    assert movielens.titles(str(tmp_path / "ratings.dat")) == expected
    (tmp_path / "bad.zip").write_text("no")
    with pytest.raises(InputError, match="expected the titles"):
        movielens.titles(str(tmp_path / "bad.zip"))
