"""A prepared log: written by all engines alike, checked, read as the loaders read."""

import gzip
import json
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from create_jax import prepare, protocol
from create_jax.configs import beauty, ml1m, yambda
from create_jax.configs import table as table_config
from create_jax.data import out_of_core, packing, prepared, splits, stored
from create_jax.data.interactions import Interactions, fingerprint
from create_jax.errors import InputError, StorageError
from create_jax.files import digest_of

RNG = np.random.default_rng(0)


def own(tmp_path, text: str, **settings):
    """A config of a log in a file."""
    config = table_config.get_config()
    config.data.path = str(tmp_path / "log.csv")
    Path(config.data.path).write_text(text)
    config.update_from_flattened_dict(settings)
    return config


def with_ties(tmp_path, n=3000, **settings):
    """Many ties, repeats, and ids whose order as text is not that of numbers."""
    users, items = RNG.integers(1, 150, n), RNG.integers(1, 60, n)
    stars = RNG.choice(["", "1", "2.5", "5"], n)
    times = RNG.integers(0, 40, n) * 86_400 + 10**9
    rows = zip(users, [f"é{i}" for i in items], times, stars, strict=True)
    text = "user,item,time,stars\n" + "\n".join(",".join(map(str, r)) for r in rows)
    return own(tmp_path, text, **{"data.table.columns.rating": "stars"} | settings)


def of_amazon(tmp_path):
    config = beauty.get_config()
    names = "reviewerID", "asin", "unixReviewTime", "overall"
    rows = [("A2", "B1", 86_400, 1.0), ("A1", "0002", 0, 5.0), ("A1", "B1", 0, 2.0)]
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    config.data.path, config.data.counts = str(path), (2, 2, 3)
    return config


def of_movielens(tmp_path):
    config = ml1m.get_config()
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as file:
        file.writestr("ml-1m/ratings.dat", "1::20::5::9\n1::3::4::9\n2::3::1::10\n")
        file.writestr("ml-1m/movies.dat", "3::Grumpier Old Men (1995)::Comedy\n")
    config.data.path, config.data.counts = str(tmp_path / "ml-1m.zip"), (2, 2, 3)
    return config


def of_yambda(tmp_path):
    config = yambda.get_config()
    n = 2000
    likes = {
        "uid": RNG.integers(0, 100, n).astype(np.uint32),
        "timestamp": (5 * RNG.integers(0, 500, n)).astype(np.uint32),
        "item_id": RNG.integers(0, 300, n).astype(np.uint32),
        "is_organic": RNG.integers(0, 2, n).astype(np.uint8),
    }
    config.data.path, config.data.counts = str(tmp_path / "likes.parquet"), ()
    pl.DataFrame(likes).write_parquet(config.data.path)
    return config


LOGS = {
    "amazon": of_amazon,
    "movielens": of_movielens,
    "yambda": of_yambda,
    "own": with_ties,
    "core": lambda p: with_ties(p, **{"data.k_core": 15}),
    "repeats": lambda p: with_ties(p, **{"data.drop_repeats": False}),
    "milliseconds": lambda p: own(
        p, "user,item,time\nb,x,1.5\na,y,1.25\na,x,0.5\nb,y,1.5\n"
    ),
    "no clock": lambda p: own(
        p,
        "user,item,time\nb,x,-3\na,y,7\na,x,0\nb,y,9000000000000000000\n",
        **{"data.table.has_clock": False, "split.kind": "leave_one_out"},
    ),
}


def same(one, other) -> bool:
    """Whether two logs are one, to the bit."""
    arrays = zip(one[:3] + one[5:6], other[:3] + other[5:6], strict=True)
    return (
        all(np.array_equal(a, b, equal_nan=b is not None) for a, b in arrays)
        and one.user_ids.equals(other.user_ids)
        and one.item_ids.equals(other.item_ids)
        and one[6:] == other[6:]
    )


def is_mapped(array) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.mark.parametrize("name", LOGS)
def test_every_engine_writes_the_log_that_the_loader_reads(name, tmp_path):
    config = LOGS[name](tmp_path)
    loaded, titles = protocol.load(config), protocol.titles(config)
    manifests = []
    for engine in prepare.ENGINES:
        if engine == "duckdb":
            pytest.importorskip("duckdb")
        folder = tmp_path / engine
        manifests.append(prepare.prepare(config, str(folder), engine))
        assert manifests[-1]["fingerprint"] == fingerprint(loaded)
        assert prepared.check(folder) == manifests[-1]
        with config.unlocked():
            ready = config.copy_and_resolve_references()
        ready.data.path = str(folder)
        read = protocol.load(ready)
        assert same(read, loaded)
        assert is_mapped(read.items) and is_mapped(read.times)
        assert protocol.titles(ready) == titles
        assert os.listdir(tmp_path).count(f"{engine}.part") == 0
    one, other = ({**m, "engine": "", "files": ""} for m in manifests)
    assert one == other


@pytest.mark.parametrize("scale", [1, 7, 10**9, 2**53])
def test_the_smallest_times_are_those_of_a_sort(scale, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 100)
    monkeypatch.setattr(stored, "BINS", 64)
    times = RNG.integers(-500, 500, 1000) * scale
    places = [0, 999, *RNG.integers(0, 1000, 20).tolist()]
    assert stored.smallest(times, places) == np.sort(times)[places].tolist()


def test_blocks_of_any_size_make_one_folder(tmp_path, monkeypatch):
    config = with_ties(tmp_path, 500)
    whole = prepare.prepare(config, str(tmp_path / "whole"))
    for module in (prepared, stored):
        monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setattr(prepared, "FILE", 100)
    monkeypatch.setattr(stored, "BINS", 64)
    parts = prepare.prepare(config, str(tmp_path / "parts"))
    assert len(list((tmp_path / "parts" / "rows").iterdir())) == 5
    assert {**parts, "files": ""} == {**whole, "files": ""}
    prepared.check(tmp_path / "parts")


def test_the_cut_is_that_of_the_split(tmp_path):
    config = with_ties(tmp_path)
    cut = prepare.prepare(config, str(tmp_path / "out"))["cut"]
    config.data.path = str(tmp_path / "out")
    split = protocol.make_split(config, protocol.load(config))
    assert cut["time"] == split.refit.times.max()
    assert cut["valid_time"] == split.train.times.max()
    assert (cut["q_test"], cut["q_val"]) == (config.split.q_test, config.split.q_val)


# --- what is wrong with a folder ------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    prepare.prepare(with_ties(tmp_path, 300), str(tmp_path / "log"))
    return tmp_path / "log"


def change_manifest(folder, **changes):
    path = folder / prepared.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sign(folder):
    """The files of the folder as its manifest would list them."""
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": digest_of(folder / name),
        }
        for name in prepared._names(folder)
    }
    change_manifest(folder, files=files)


def rewrite(folder, change):
    path = folder / "rows" / "part-00000.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    sign(folder)


def complaint(folder) -> str:
    with pytest.raises(InputError) as caught:
        prepared.check(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_check_names_a_half_written_folder(folder):
    (folder / prepared.MANIFEST).unlink()
    assert "was half-written" in complaint(folder)
    assert "is no prepared log" in complaint(folder.parent)
    assert "no such folder" in complaint(folder.parent / "none")


def test_check_names_another_version(folder):
    change_manifest(folder, version=2)
    assert "version 2; expected" in complaint(folder)
    (folder / prepared.MANIFEST).write_text("{")
    assert "cannot be read" in complaint(folder)


def test_check_names_rows_that_are_not_sorted(folder):
    rewrite(folder, lambda rows: rows.reverse())
    text = complaint(folder)
    assert "part-00000.parquet: row 2" in text or "row 1:" in text
    assert "expected rows sorted by user and time" in text


@pytest.mark.parametrize("code", [0, -1, 10**6])
def test_check_names_codes_out_of_range(folder, code):
    item = pl.when(pl.int_range(pl.len()) == 4).then(code).otherwise("item")
    rewrite(folder, lambda rows: rows.with_columns(item=item.cast(pl.Int32)))
    assert f"row 5: item {code} is out of range; expected 1 to" in complaint(folder)


def test_check_names_a_file_of_another_log(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    prepare.prepare(with_ties(other, 300), str(other / "log"))
    name = "items.i32"
    kept = (folder / name).read_bytes()
    shutil.copy(other / "log" / name, folder / name)
    assert f"{folder / name}" in complaint(folder)
    n = min(len(kept), (other / "log" / name).stat().st_size)
    (folder / name).write_bytes((other / "log" / name).read_bytes()[:n] + kept[n:])
    assert "is damaged, or of another log" in complaint(folder)
    sign(folder)  # as if it were meant
    assert "are not those of rows/: one of them is of another log" in complaint(folder)
    (folder / name).write_bytes(kept)
    sign(folder)
    prepared.check(folder)
    shutil.copy(
        other / "log/rows/part-00000.parquet", folder / "rows/part-00001.parquet"
    )
    assert "part-00001.parquet, which manifest.json does not list" in complaint(folder)


def test_check_names_missing_and_cut_files(folder):
    with open(folder / "times.i64", "ab") as file:
        file.truncate(80)
    assert "found 80 bytes; manifest.json promises" in complaint(folder)
    (folder / "times.i64").unlink()
    assert "found no times.i64, which manifest.json lists" in complaint(folder)


def test_check_names_promises_that_are_not_kept(folder):
    whole = json.loads((folder / prepared.MANIFEST).read_text())
    counts = whole["counts"]
    for name in ("users", "interactions"):
        change_manifest(folder, counts=counts | {name: counts[name] + 1})
        assert "promises" in complaint(folder)
    change_manifest(folder, counts=counts | {"items": counts["items"] + 1})
    assert "promises counts" in complaint(folder)
    others = [("fingerprint", "0"), ("cut", {}), ("quantiles", {})]
    for key, value in others:
        change_manifest(folder, **whole | {key: value})
        assert f"promises {key}" in complaint(folder)
    change_manifest(folder, **whole | {"ties": "random"})
    assert "and ties 'random'" in complaint(folder)
    change_manifest(folder, **whole | {"rows": None})
    assert "found rows missing" in complaint(folder)
    change_manifest(folder, **whole)
    prepared.check(folder)


def test_check_names_ids_that_are_not_sorted_or_in_no_row(folder):
    path = folder / "users" / "part-00000.parquet"
    ids = pl.read_parquet(path)
    ids.reverse().write_parquet(path)
    sign(folder)
    assert "expected different texts sorted by their bytes" in complaint(folder)
    pl.concat([ids, pl.DataFrame({"id": ["~"]})]).write_parquet(path)
    sign(folder)
    assert "stands in no row of rows/" in complaint(folder)


def test_check_names_rows_of_other_columns_and_types(folder):
    rewrite(folder, lambda rows: rows.with_columns(time=pl.lit(None, pl.Int64)))
    assert "in column 'time' that are no int64" in complaint(folder)
    rewrite(folder, lambda rows: rows.rename({"time": "when"}))
    assert "expected user, item, time" in complaint(folder)


# --- half-written, refused ------------------------------------------------------------


def test_what_was_killed_is_never_taken_for_whole(tmp_path, monkeypatch):
    config, out = with_ties(tmp_path, 300), tmp_path / "log"

    part, kept = tmp_path / "log.part", tmp_path / "kept"

    def interrupted(*_):
        shutil.copytree(part, kept)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepared, "_derived", interrupted)  # the rows are there, all
        prepare.prepare(config, str(out))
    assert sorted(os.listdir(tmp_path)) == ["kept", "log.csv"]
    kept.rename(part)  # as a kill leaves it
    (tmp_path / "log.part.lock").touch()
    assert (part / "items.i32").exists()
    for path in (part, part / "rows"):
        (config := config.copy_and_resolve_references()).data.path = str(path)
        with pytest.raises(InputError):
            protocol.load(config)
    config.data.path = str(tmp_path / "log.csv")
    prepare.prepare(config, str(out))  # the same command
    prepared.check(out)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.csv"]
    with pytest.raises(InputError, match="is there already"):
        prepare.prepare(config, str(out))


def test_a_folder_in_the_way_is_left_as_it_is(tmp_path):
    """Even where it is the log."""
    config, part = with_ties(tmp_path, 300), tmp_path / "log.part"
    part.mkdir()
    (tmp_path / "log.csv").rename(part / "log.csv")
    config.data.path = str(part / "log.csv")
    with pytest.raises(InputError, match="log.part: holds log.csv, and is where .*log"):
        prepare.prepare(config, str(tmp_path / "log"))
    assert os.listdir(part) == ["log.csv"] and os.listdir(tmp_path) == ["log.part"]


def test_a_disk_that_is_too_small_is_said_before(tmp_path, monkeypatch):
    pytest.importorskip("duckdb")
    config = with_ties(tmp_path, 300)
    usage = namedtuple("usage", "total used free")(10**4, 0, 10**4)
    monkeypatch.setattr(out_of_core.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(out_of_core, "_ingest", lambda *_: pytest.fail("it began"))
    with pytest.raises(StorageError, match=r"DuckDB wants up to \d+ MB for .*--spill"):
        prepare.prepare(config, str(tmp_path / "out"), "duckdb")
    assert not (tmp_path / "out").exists()


def test_what_duckdb_cannot_do_is_one_line(tmp_path):
    pytest.importorskip("duckdb")
    for time in ("0.5", "1e30", "99999999999999999999"):
        config = own(
            tmp_path,
            f"user,item,time\na,x,{time}\nb,y,1\n",
            **{"data.table.has_clock": False},
        )
        with pytest.raises(InputError, match="prepare it with --engine=polars"):
            prepare.prepare(config, str(tmp_path / "out"), "duckdb")
    with pytest.raises(InputError, match="is --memory right"):
        prepare.prepare(with_ties(tmp_path), str(tmp_path / "o"), "duckdb", "much")
    for text, expected in (
        ("user,item,time\n", "is empty"),
        ("u,i\n", "no column 'item'"),
    ):
        with pytest.raises(InputError, match=expected):
            prepare.prepare(own(tmp_path, text), str(tmp_path / "o"), "duckdb")
    text = "user,item,time\n1,x,1\nnan,y,2\n2,x,3\n"
    for engine in prepare.ENGINES:
        with pytest.raises(InputError, match="found no user but 'nan'"):
            prepare.prepare(own(tmp_path, text), str(tmp_path / "o"), engine)
        with pytest.raises(InputError, match="the 100-core leaves no"):
            config = with_ties(tmp_path, **{"data.k_core": 100})
            prepare.prepare(config, str(tmp_path / "o"), engine)
        with pytest.raises(InputError, match="expected 1 users"):
            config = with_ties(tmp_path, **{"data.counts": (1, 1, 1)})
            prepare.prepare(config, str(tmp_path / "o"), engine)
    assert os.listdir(tmp_path) == ["log.csv"]  # nothing is left of a failure


def test_what_others_spill_stays(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    config, spill = with_ties(tmp_path, 300), tmp_path / "disk"
    (spill / "spill").mkdir(parents=True)
    (spill / "spill" / "mine").touch()
    left = spill / out_of_core.spill_of(tmp_path / "out.part")  # of a killed run
    left.mkdir()
    with duckdb.connect(str(left / "log.duckdb")) as base:
        base.execute("CREATE TABLE raw (x INTEGER)")
    prepare.prepare(config, str(tmp_path / "out"), "duckdb", spill=str(spill))
    assert [path.name for path in spill.rglob("*")] == ["spill", "mine"]
    others = out_of_core.spill_of(tmp_path / "out2.part")  # at work now
    assert others != left.name


def test_a_cut_parquet_file_is_left_to_its_reader(tmp_path):
    whole = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1]}).write_parquet(whole)
    assert out_of_core.disk_wanted([str(whole)]) > 0
    content = whole.read_bytes()
    whole.write_bytes(content[:-40] + b"\xff" * 32 + content[-8:])
    assert out_of_core.disk_wanted([str(whole)]) == 0
    whole.write_bytes(whole.read_bytes()[:-8])
    assert out_of_core.disk_wanted([str(whole)]) == 0


def test_a_config_that_asks_for_another_log_is_refused(folder):
    config = table_config.get_config()
    config.data.path = str(folder)
    protocol.load(config)
    for key, value, expected in (
        ("data.k_core", 5, "--config.data.k_core=0"),
        ("data.drop_repeats", False, "--config.data.drop_repeats=True"),
        ("data.counts", (1, 2, 3), "is it another log"),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value})
        with pytest.raises(InputError, match=expected):
            protocol.load(other)


def test_the_command(tmp_path, capsys):
    config = with_ties(tmp_path, 300)
    out = str(tmp_path / "log")
    options = [f"--config.data.path={config.data.path}", "--config.data.k_core=2"]
    options.append("--config.data.drop_repeats=true")  # in any case, as in training
    run = prepare.main
    assert run(["--config=table", f"--out={out}", *options]) == 0
    assert "prepared by polars" in capsys.readouterr().out
    assert run([f"--check={out}"]) == 0
    (Path(out) / prepared.MANIFEST).unlink()
    assert run([f"--check={out}"]) == 2
    assert "half-written" in capsys.readouterr().err
    # Ratings of rows that were here before are not those of these rows.
    (Path(out) / "ratings.f32").write_bytes(bytes(12))
    assert run([f"--finish={out}"]) == 0
    assert not json.loads((Path(out) / prepared.MANIFEST).read_text())["has_ratings"]
    assert run([f"--check={out}"]) == 0
    for wrong in (
        [],
        ["--config=table", f"--out={out}"],
        ["--config=table", f"--out={out}2", "--config.data.none=1"],
        ["--config=table", f"--out={out}2", "--config.data.k_core=x"],
        ["--config=table", f"--out={out}2", "--config.data.k_core=2.5"],
        ["--config=table", "--out=.", *options],
        ["--config=table", f"--out={out}2", "--other"],
    ):
        assert run(wrong) == 2
        assert capsys.readouterr().err.startswith("error: ")


# --- read where it is -----------------------------------------------------------------


def asked(holdout) -> list:
    """The questions, whatever array their histories are slices of."""
    if holdout is None:
        return []
    slices = zip(holdout.begin, holdout.end, strict=True)
    return [
        holdout.users.tolist(),
        [holdout.log[begin:end].tolist() for begin, end in slices],
        holdout.targets.tolist(),
        holdout.offsets.tolist(),
        holdout.candidates.tolist(),
        holdout.places.tolist(),
    ]


@pytest.mark.parametrize(
    ("kind", "validation"),
    [
        *[("global_temporal", v) for v in splits.VALIDATIONS["global_temporal"]],
        *[("leave_one_out", v) for v in splits.VALIDATIONS["leave_one_out"]],
    ],
)
@pytest.mark.parametrize("queries, q_val", [(0, 0.9), (20, 0.83)])
def test_a_log_on_a_disk_splits_as_one_in_memory(
    kind, validation, queries, q_val, tmp_path, monkeypatch
):
    """The splits, the questions and the training sequences, to the bit."""
    monkeypatch.setattr(stored, "BLOCK", 50)
    monkeypatch.setattr(stored, "BINS", 64)
    changes = {"split.kind": kind, "split.validation": validation}
    changes |= {
        "split.q_val": q_val,
        "eval.queries": queries,
        "eval.targets": splits.TARGETS,
        "eval.select_target": "successive" if queries else "",
    }
    changes |= {"eval.cold_items": "drop", "retrain.epochs": "best"}
    config = with_ties(tmp_path, 900, **changes)
    config.method = "sasrec"
    prepare.prepare(config, str(tmp_path / "out"))
    in_memory = protocol.load(config)
    whole = protocol.make_split(config, in_memory)
    config.data.path = str(tmp_path / "out")
    on_disk = protocol.load(config)
    assert isinstance(on_disk, stored.Stored)
    split = protocol.make_split(config, on_disk)
    described = protocol.describe(config, on_disk, split)
    assert described == protocol.describe(config, in_memory, whole)
    assert described["protocol"].get("queries", 0) == queries
    assert (split.test["last"].n_queries <= 20) == bool(queries)
    for name, holdout in whole.test.items():
        assert asked(split.test[name]) == asked(holdout), name
    assert asked(split.valid) == asked(whole.valid)
    for part in ("train", "refit"):
        mine, other = getattr(split, part), getattr(whole, part)
        assert same(mine.in_memory(), other._replace(rows=mine.rows))
        assert mine.n_rows == other.n_rows
        some, more = (packing.training_sequences(p, 10, 99) for p in (mine, other))
        assert np.array_equal(some.owners, more.owners)
        assert np.array_equal(some.lengths, more.lengths)
        pairs = zip(some.begin, more.begin, some.end, strict=True)
        for a, b, end in pairs:
            assert np.array_equal(some.log[a:end], more.log[b : b + end - a])


def test_what_reads_all_rows_gets_them(tmp_path):
    config = with_ties(tmp_path, 300)
    prepare.prepare(config, str(tmp_path / "out"))
    config.data.path = str(tmp_path / "out")
    for changes in (
        {"method": "create"},
        {"method": "mostpop"},
        {"method": "sasrec", "split.ties": "random"},
    ):
        config.update_from_flattened_dict(changes)
        assert isinstance(protocol.load(config), Interactions)
