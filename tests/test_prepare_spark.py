"""The Spark job in local mode writes what the loaders read."""

import shutil
import sys
from pathlib import Path

import polars as pl
import pytest
import test_prepared as logs

from create_jax import protocol
from create_jax.configs import table as table_config
from create_jax.data import prepared
from create_jax.data.interactions import fingerprint

pytest.importorskip("pyspark", reason="needs PySpark: pip install '.[spark]'")
needs_java = pytest.mark.skipif(
    not shutil.which("java"), reason="needs a Java runtime: default-jre-headless"
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def job():
    sys.path.append(str(ROOT / "launch"))
    import prepare_spark

    yield prepare_spark
    sys.path.remove(str(ROOT / "launch"))


@pytest.fixture(scope="module")
def spark(job):
    from pyspark.sql import SparkSession

    quiet = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "3",
        # Tables are tiny: compiling and planning again would cost more than they save.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.adaptive.enabled": "false",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.files.maxPartitionBytes": "20000",  # several pieces of a small file
    }
    builder = SparkSession.builder.master("local[2]").config(map=quiet)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


def own(tmp_path):
    config = logs.with_ties(tmp_path, **{"data.k_core": 15})
    names = dict(
        zip(
            ("user", "item", "time", "rating"),
            ("user", "item", "time", "stars"),
            strict=True,
        )
    )
    options = [f"--{key}={name}" for key, name in names.items()]
    return config, ["--format=csv", "--k-core=15", *options]


def of_amazon(tmp_path):
    names = "--user=reviewerID", "--item=asin", "--time=unixReviewTime"
    config = logs.of_amazon(tmp_path)
    return config, ["--format=jsonl", *names, "--rating=overall"]


def of_movielens(tmp_path):
    config = logs.of_movielens(tmp_path)
    config.data.path = str(tmp_path / "ratings.dat")
    Path(config.data.path).write_text("1::20::5::9\n1::3::4::9\n2::3::1::10\n")
    pl.DataFrame({"id": ["3"], "title": ["Grumpier Old Men (1995)"]}).write_parquet(
        tmp_path / "titles.parquet"
    )
    form = "--format=csv", "--separator=::", "--no-header"
    names = "--user=0", "--item=1", "--time=3", "--rating=2"
    return config, [*form, *names, f"--titles={tmp_path}/titles.parquet"]


def of_yambda(tmp_path):
    names = "--user=uid", "--item=item_id", "--time=timestamp"
    return logs.of_yambda(tmp_path), ["--format=parquet", *names]


def parts(tmp_path):
    """Several files, whose order breaks ties; milliseconds; repeats stay."""
    config = table_config.get_config()
    folder = tmp_path / "log"
    folder.mkdir()
    config.data.path, config.data.drop_repeats = str(folder), False
    for number in (10, 2, 1):
        n = 700
        rows = {
            "user": logs.RNG.integers(0, 30, n),
            "item": logs.RNG.integers(0, 20, n),
            "time": logs.RNG.integers(0, 9, n) * 500 + 10**12,
        }
        pl.DataFrame(rows).write_parquet(folder / f"p{number}.parquet")
    names = "--user=user", "--item=item", "--time=time", "--time-unit=ms"
    return config, ["--format=parquet", "--keep-repeats", *names]


def days(tmp_path):
    """Moments of which only the order counts."""
    config = table_config.get_config()
    config.data.path, config.data.table.has_clock = str(tmp_path / "log.parquet"), False
    config.split.kind = "leave_one_out"
    days = pl.Series(logs.RNG.integers(18_000, 18_300, 2000)).cast(pl.Int32)
    rows = {
        "user": logs.RNG.integers(0, 30, 2000),
        "item": logs.RNG.integers(0, 20, 2000),
        "time": days.cast(pl.Date),
    }
    pl.DataFrame(rows).write_parquet(config.data.path)
    names = "--user=user", "--item=item", "--time=time", "--no-clock"
    return config, ["--format=parquet", *names]


@needs_java
@pytest.mark.services
def test_spark_writes_the_log_that_the_loader_reads(job, spark, tmp_path, capsys):
    for make in (own, of_amazon, of_movielens, of_yambda, parts, days):
        place = tmp_path / make.__name__
        place.mkdir()
        config, options = make(place)
        loaded = protocol.load(config)
        out = place / "out"
        code = job.main([f"--input={config.data.path}", f"--out={out}", *options])
        said = capsys.readouterr()
        assert code == 0, said.err
        manifest = prepared.check(out)
        assert manifest["fingerprint"] == fingerprint(loaded), make.__name__
        assert manifest["rows"] == loaded.rows._asdict()
        ready = config.copy_and_resolve_references()
        ready.data.path = str(out)
        assert logs.same(protocol.load(ready), loaded)
        if make is of_movielens:
            assert protocol.titles(ready) == {"3": "Grumpier Old Men (1995)"}
        assert not out.with_name("out.part").exists()
        code = job.main([f"--input={config.data.path}", f"--out={out}", *options])
        assert code == 2 and "is there already" in capsys.readouterr().err


TWO = '{"user": 1, "item": 2, "time": 3}'
ODD = {  # Spark itself reads them all, and drops or joins what it does not expect
    "more fields than columns": ("csv", b"user,item,time\na,x,1,2\nb,y,1\n"),
    "other bytes": ("csv", "user,item,time\n\xe9,x,1\n\xe8,y,1\n".encode("latin-1")),
    "two objects": ("jsonl", f"{TWO} {TWO}\n".encode()),
    "a list of objects": ("jsonl", f"{TWO},{TWO}\n".encode()),
    "a list of items": ("jsonl", b'{"user": 1, "item": [1, 2], "time": 3}\n'),
}


@needs_java
@pytest.mark.services
def test_spark_refuses_what_the_loader_refuses(job, spark, tmp_path, capsys):
    for name, (kind, text) in ODD.items():
        (tmp_path / "log").write_bytes(text)
        form = f"--format={kind}", "--user=user", "--item=item", "--time=time"
        out = f"--out={tmp_path / 'out'}"
        assert job.main([f"--input={tmp_path / 'log'}", out, *form]) == 2, name
        assert "found a row of user" in capsys.readouterr().err, name
    for text, expected in (
        ("user,item,time\na,x,1\nb,,2\n", "found a row of user 'b', item None"),
        ("user,item,time\na,x,1.5\nb,y,2\n", "expected all three, and times as whole"),
        ("user,item,time\n1,x,1\nnan,y,2\n", "found rows without user"),
        ("user,thing,time\n1,x,1\n", "found no column 'item'"),
    ):
        bad = logs.own(tmp_path, text)
        names = "--user=user", "--item=item", "--time=time", "--format=csv"
        log = [f"--input={bad.data.path}", f"--out={tmp_path}/bad"]
        assert job.main([*log, *names]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "bad").exists()
    folder = tmp_path / "several"
    folder.mkdir()
    for name, head in (("a.csv", "user,item,time"), ("b.csv", "item,user,time")):
        (folder / name).write_text(f"{head}\nx,y,1\nz,w,2\n")
    assert job.main([f"--input={folder}", f"--out={tmp_path}/bad", *names]) == 2
    err = capsys.readouterr().err  # columns in another order
    assert "Spark says: " in err and "b.csv" in err and err.count("\n") == 1
