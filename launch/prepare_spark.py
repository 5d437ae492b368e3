"""A prepared log (docs/prepared.md), made by Spark on a cluster.

spark-submit launch/prepare_spark.py --input LOG --out DIR --format parquet \
  --user uid --item item_id --time timestamp

This file and PySpark are all that a worker needs. LOG is anything that Spark reads: a
file, a folder or a pattern, on any storage. DIR is a folder that the driver and all
workers share. Where create_jax is not installed beside the driver, the last step is
`python -m create_jax.prepare --finish=DIR.part`, and a rename.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pyspark
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

# As create_jax.data.interactions has them, which a worker need not have.
MISSING = ("nan", "null", "none", "na", "n/a", "<na>", "nil", "\\n", "inf", "-inf")
NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?$"
WHOLE = r"^[ \t]*[+-]?[0-9]+[ \t]*$"
STRING = r'"(\\.|[^"\\])*"'  # of a line of JSON
NESTED = r"([:,\[]\s*)[\[{][^\[\]{}]*[\]}]"  # an object or list that holds no other
FLAT = r"^\s*\{[^\[\]{}]*\}\s*$"  # an object that holds none
ODD = " odd"  # the column of rows with more or fewer fields than the others
DEPTH = 4  # of objects and lists inside a line's object
NANO = 10**9
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": NANO}  # in a second
AHEAD = 86_400  # seconds by which the clock of another machine may be ahead
IN_PARTITION = 2**33 - 1  # the row in `monotonically_increasing_id`


class LogError(Exception):
    """What is wrong, in one line."""


def main(argv=None) -> int:
    """Returns the exit code: 0, or 2 after a line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="the log")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--format", required=True, choices=("parquet", "csv", "jsonl"))
    for name in ("user", "item", "time"):
        text = "its column: a name, or a number from 0 with --no-header"
        parser.add_argument(f"--{name}", required=True, help=text)
    parser.add_argument("--rating", help="the column of the ratings, if wanted")
    parser.add_argument("--time-unit", default="s", choices=UNITS, help="%(default)s")
    parser.add_argument("--no-clock", action="store_true", help="times only sort")
    parser.add_argument("--separator", default=",", help="of csv; %(default)s")
    parser.add_argument("--no-header", action="store_true", help="of csv")
    parser.add_argument("--no-quoting", action="store_true", help="of csv")
    parser.add_argument("--k-core", type=int, default=0)
    parser.add_argument("--keep-repeats", action="store_true")
    parser.add_argument("--titles", help="Parquet with columns id and title, of items")
    parser.add_argument("--name", default="table", help="of the data; %(default)s")
    args = parser.parse_args(argv)
    try:
        spark = SparkSession.builder.appName("prepare").getOrCreate()
        print(prepare(spark, args))
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (PySparkException, Py4JJavaError) as error:
        of_java = isinstance(error, Py4JJavaError)
        text = str(error.java_exception.getMessage() if of_java else error)
        text = " ".join(text.split())[:300]
        print(f"error: {args.input}: Spark says: {text}", file=sys.stderr)
        return 2
    return 0


def prepare(spark: SparkSession, args: argparse.Namespace) -> str:
    """Makes the folder; returns what was done."""
    out = Path(args.out)
    if "://" in args.out:
        raise LogError(f"{args.out}: expected a folder that all machines share")
    if out.exists():
        raise LogError(f"{out}: is there already; take it away or choose another --out")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    for key, value in (
        ("spark.sql.session.timeZone", "UTC"),
        ("spark.sql.ansi.enabled", "false"),  # what does not parse is null
        ("spark.sql.csv.parser.columnPruning.enabled", "false"),  # fields are counted
    ):
        spark.conf.set(key, value)
    about = _write(spark, args, part.absolute())
    (part / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    try:
        from create_jax.data import prepared
    except ImportError:
        return (
            f"{part}: rows and ids are written; now python -m create_jax.prepare "
            f"--finish={part}, and rename it {out}"
        )
    try:
        manifest = prepared.finish(part)
    except prepared.InputError as error:
        raise LogError(str(error)) from error
    os.replace(part, out)
    return f"{out}: prepared by {about['engine']}, {manifest['fingerprint']}"


def _write(spark, args, part: Path) -> dict:
    """Rows, users and items below `part`; returns what the rows do not say."""
    spill = _Spill(spark, part / "spill")

    # The rows as text, with their places: (file, where its piece begins, row of that).
    raw = spill.keep("raw", _read(spark, args))
    read = raw.count()
    _refuse_bad_rows(raw, args)
    units, per_second = _unit(raw, args)

    # Codes follow the ids sorted by their bytes, which is Spark's order of text.
    users, items = (_numbered(spark, spill, raw, key, "id") for key in ("user", "item"))
    for key, ids in (("user", users), ("item", items)):
        _refuse_missing(ids, key, args.input)
    order = ["file", "begin", "row"]
    log = (
        raw.join(users.withColumnRenamed("id", "user"), "user")
        .withColumnRenamed("number", "u")
        .join(items.withColumnRenamed("id", "item"), "item")
        .withColumnRenamed("number", "i")
        .select("u", "i", F.expr(f"time div {units}").alias("time"), "rating", *order)
    )
    log = spill.keep("log", log)

    # The filters of `interactions.from_frame`, in its order.
    if not args.keep_repeats:
        before = F.lag("i").over(Window.partitionBy("u").orderBy("time", *order))
        kept = log.withColumn("before", before)
        kept = kept.where(F.col("before").isNull() | (F.col("before") != F.col("i")))
        log = spill.keep("log", kept.drop("before"))
    left = single = log.count()
    k, before = args.k_core, -1
    while k > 1 and left != before:
        before = left
        for key in ("u", "i"):
            enough = log.groupBy(key).count().where(F.col("count") >= k).select(key)
            log = log.join(enough, key, "left_semi")
        log = spill.keep("log", log)
        left = log.count()
    if not left:
        raise LogError(f"{args.input}: the {k}-core leaves no interactions")

    # What is left, numbered without gaps.
    if k > 1:
        for key, ids in (("u", users), ("i", items)):
            numbers = _numbered(spark, spill, log, key, key)
            log = log.join(numbers, key).drop(key).withColumnRenamed("number", key)
            ids = ids.withColumnRenamed("number", key).join(numbers, key).drop(key)
            users, items = (ids, items) if key == "u" else (users, ids)
    sizes = users.count(), items.count()
    if min(sizes) < 2:
        raise LogError(
            f"{args.input}: found {sizes[0]} user(s) and {sizes[1]} item(s); expected "
            "at least 2 of each: are the columns right?"
        )
    columns = {
        "user": F.col("u").cast("int"),
        "item": (F.col("i") + 1).cast("int"),
        "time": F.col("time"),
    }
    if log.where(F.col("rating").isNotNull()).limit(1).count():
        columns["rating"] = F.col("rating")
    rows = log.orderBy("u", "time", *order)
    rows.select(*(value.alias(name) for name, value in columns.items())).write.parquet(
        str(part / "rows")
    )
    users.orderBy("number").select("id").write.parquet(str(part / "users"))
    if args.titles:
        titles = spark.read.parquet(args.titles).select(
            F.col("id").cast("string"), F.col("title").cast("string")
        )
        items = items.join(titles.dropDuplicates(["id"]), "id", "left")
    items.orderBy("number").drop("number").write.parquet(str(part / "items"))
    spill.clear()
    return {
        "name": args.name,
        "engine": f"spark {pyspark.__version__}",
        "sources": [args.input],
        "filters": {"k_core": k, "drop_repeats": not args.keep_repeats},
        "ties": "file",
        "per_second": per_second,
        "has_clock": not args.no_clock,
        "rows": {"read": read, "repeats": read - single, "k_core": single - left},
    }


class _Spill:
    """Tables on the shared disk: what comes after one does not make it again."""

    def __init__(self, spark, place: Path):
        self.spark, self.place, self.made = spark, place, {}

    def keep(self, name: str, frame: DataFrame) -> DataFrame:
        """The frame, written; the one of that name before it goes."""
        path = str(self.place / f"{name}-{len(self.made)}-{time.monotonic_ns()}")
        frame.write.parquet(path)
        if name in self.made:
            shutil.rmtree(self.made[name])
        self.made[name] = path
        return self.spark.read.parquet(path)

    def clear(self) -> None:
        shutil.rmtree(self.place)


def _read(spark, args) -> DataFrame:
    """user, item (text), time (long; null: none), rating (float), and the place."""
    reader, args.moments = spark.read, False
    if args.format == "parquet":
        frame = reader.parquet(args.input)
    elif args.format == "csv":
        form = {
            "sep": args.separator,
            "header": not args.no_header,
            "quote": "" if args.no_quoting else '"',
            "escape": '"',
            "columnNameOfCorruptRecord": ODD,
            "enforceSchema": False,  # columns in another order in some file
        }
        fields = reader.csv(args.input, **form).schema.add(ODD, T.StringType())
        frame = reader.schema(fields).csv(args.input, **form)
    else:
        names = filter(None, (args.user, args.item, args.time, args.rating))
        texts = [T.StructField(name, T.StringType()) for name in dict.fromkeys(names)]
        row = _from_json(F.col("value"), T.StructType(texts), (args.user, args.item))
        frame = reader.text(args.input).where(F.trim("value") != "")
        frame = frame.select(row.alias("row"), "_metadata").select("row.*", "_metadata")

    def column(name):
        name = f"_c{name}" if args.format == "csv" and args.no_header else name
        if name not in frame.columns:
            raise LogError(
                f"{args.input}: found no column {name!r}; expected one of "
                f"{', '.join(frame.columns[:12])}"
            )
        return F.col(f"`{name}`"), frame.schema[name].dataType

    whole = T.ByteType | T.ShortType | T.IntegerType | T.LongType
    picked = {}
    for key in ("user", "item"):
        value, kind = column(getattr(args, key))
        if not isinstance(kind, T.StringType | whole):
            raise LogError(
                f"{args.input}: found {kind.simpleString()} for {key}; expected text "
                "or whole numbers: cast it, or use another engine"
            )
        picked[key] = value.cast("string")
    value, kind = column(args.time)
    if isinstance(kind, T.StringType):
        value = F.when(value.rlike(WHOLE), F.trim(value).cast("long"))
    elif isinstance(kind, T.TimestampType | T.TimestampNTZType | T.DateType):
        args.time_unit, args.moments = "us", True
        value = F.unix_micros(value.cast("timestamp"))
    elif not isinstance(kind, whole):
        raise LogError(
            f"{args.input}: found {kind.simpleString()} as times; expected whole "
            "numbers or timestamps: cast it, or use another engine"
        )
    picked["time"] = value.cast("long")
    if args.format == "csv":
        picked["time"] = F.when(F.col(ODD).isNull(), picked["time"])
    rating = column(args.rating)[0].cast("float") if args.rating else F.lit(None)
    finite = ~F.isnan(rating) & (F.abs(rating) != float("inf"))
    picked["rating"] = (F.when(finite, rating) if args.rating else rating).cast("float")
    frame = frame.select(
        *(value.alias(key) for key, value in picked.items()),
        F.col("_metadata.file_path").alias("path"),
        F.col("_metadata.file_block_start").alias("begin"),
        F.monotonically_increasing_id().alias("row"),
    )
    # Files in the order of their names, folder by folder.
    files = [(_plain(path),) for path in frame.inputFiles()]
    files.sort(key=lambda one: one[0].split("/"))
    table = [(path, number) for number, (path,) in enumerate(files)]
    names = spark.createDataFrame(table, "plain string, file int")
    plain = F.regexp_replace("path", "^[a-zA-Z0-9]+:/+", "/")
    frame = frame.withColumn("plain", plain)
    return frame.join(F.broadcast(names), "plain", "left").drop("path", "plain")


def _from_json(line, fields: T.StructType, ids):
    """The fields of a line that is one object, null else; ids are no objects or lists.
    Spark itself reads the first object of a line, and drops the rest."""
    bare = F.regexp_replace(line, STRING, '""')
    found, good = F.from_json(line, fields), F.lit(True)
    for name in ids:
        good &= ~(found[name].rlike(r"^[\[{]") & bare.rlike(NESTED))
    for _ in range(DEPTH):
        bare = F.regexp_replace(bare, NESTED, "$1null")
    return F.when(bare.rlike(FLAT) & F.coalesce(good, F.lit(False)), found)


def _plain(path: str) -> str:
    """Without its scheme, which Spark writes in two ways."""
    scheme, colon, rest = path.partition(":/")
    return "/" + rest.lstrip("/") if colon and scheme.isalnum() else path


def _refuse_bad_rows(raw: DataFrame, args) -> None:
    if raw.where(F.col("file").isNull()).limit(1).count():
        raise LogError(
            f"{args.input}: cannot tell the order of its files by their names"
        )
    good = F.lit(True)
    for key in ("user", "item"):
        good &= F.col(key).isNotNull() & (F.col(key) != "")
        if args.format != "parquet":  # Spark's for bytes that are no UTF-8
            good &= ~F.col(key).contains("\ufffd")
    known = F.col("time").isNotNull()
    if not args.no_clock:
        last = (int(time.time()) + AHEAD) * UNITS[args.time_unit]
        known &= (F.col("time") >= 0) & (F.col("time") <= last)
    bad = raw.where(~(good & F.coalesce(known, F.lit(False)))).limit(1).collect()
    if bad:
        row = bad[0]
        raise LogError(
            f"{args.input}: found a row of user {row['user']!r}, item {row['item']!r}, "
            f"time {row['time']!r}; expected all three, and times as whole numbers in "
            f"{args.time_unit} from 1970 to now (--time-unit, --no-clock); of text in "
            "UTF-8, as many fields as columns, a JSON object a line: mend or drop it, "
            "or use another engine, which reads more forms"
        )
    if not raw.limit(1).count():
        raise LogError(f"{args.input}: the log is empty")


def _refuse_missing(ids: DataFrame, key: str, source: str) -> None:
    """A word for nothing among numbers is no id."""
    word = F.lower("id").isin(*MISSING)
    number = F.col("id").rlike(NUMBER)
    words, numbers, others = ids.agg(
        F.count(F.when(word, 1)),
        F.count(F.when(number, 1)),
        F.count(F.when(~word & ~number, 1)),
    ).first()
    if words and numbers and not others:
        raise LogError(
            f"{source}: found rows without {key}, whose id is a word such as 'null', "
            "where all others are numbers; drop those rows"
        )


def _unit(raw: DataFrame, args) -> tuple[int, int]:
    """(units of the log in the coarsest unit that is exact, such units in a second)."""
    if args.no_clock and not args.moments:
        return 1, 1
    finest = UNITS[args.time_unit]
    for per_second in (1, 10**3, 10**6):
        units = finest // per_second
        if units <= 1:
            break
        if not raw.where(F.expr(f"time % {units} != 0")).limit(1).count():
            return units, per_second
    return 1, finest


def _numbered(spark, spill: _Spill, frame: DataFrame, key: str, name: str) -> DataFrame:
    """The different values of a column, as `name`, and their places (`number`, from 0)
    where they are sorted."""
    values = frame.select(F.col(key).alias(name)).distinct().orderBy(name)
    values = values.withColumn("place", F.monotonically_increasing_id())
    values = spill.keep(f"{key}s", values)
    piece = F.shiftright("place", 33).alias("piece")
    counts = values.groupBy(piece).count().orderBy("piece").collect()
    first, begins = 0, []
    for row in counts:
        begins.append((row["piece"], first))
        first += row["count"]
    begins = spark.createDataFrame(begins, "piece long, begin long")
    values = values.withColumn("piece", F.shiftright("place", 33))
    inside = F.col("place").bitwiseAND(IN_PARTITION)
    values = values.join(F.broadcast(begins), "piece")
    return values.select(name, (F.col("begin") + inside).alias("number"))


if __name__ == "__main__":
    sys.exit(main())
