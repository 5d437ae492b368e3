"""A log prepared by DuckDB, out of core: what fits no memory goes to a disk.

The readers are those of the loaders, block by block; DuckDB codes, filters and sorts as
`interactions.from_frame` does, to the same fingerprint.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from create_jax.data import container, table
from create_jax.data.interactions import (
    MISSING,
    NUMBER,
    Rows,
    check_core,
    check_counts,
    check_sizes,
    refuse_missing,
)
from create_jax.data.prepared import ITEMS, ROWS, USERS
from create_jax.data.times import NANO
from create_jax.errors import InputError, StorageError, one_line

# Of the disk, at most: the rows as text and as codes, sorted twice, and what is made.
DISK_A_ROW = 96  # bytes, beside two ids
AS_MUCH_TEXT = 8  # bytes of text that a byte of a compressed file may hold


def write(
    folder: Path,
    log: table.Stream,
    *,
    k_core: int,
    drop_repeats: bool,
    counts: Sequence[int],
    titles: Mapping[str, str],
    memory: str,
    spill: Path,
) -> tuple[str, Rows, int]:
    """Writes rows and ids of a prepared log (`prepared.finish` does the rest).

    Args:
      folder: empty. spill: where DuckDB puts what `memory` ("8GB") does not hold.
      k_core, drop_repeats, counts: see `from_frame`.

    Returns:
      the engine, what became of the rows, and units of time in a second.

    Raises:
      InputError: DuckDB is missing, or the log is none.
      StorageError: the disk is too small for what is spilled.
    """
    duckdb = _duckdb()
    check_disk(log, spill)
    spill = spill / spill_of(folder)
    shutil.rmtree(spill, ignore_errors=True)  # of a run that was killed
    spill.mkdir()
    try:
        with duckdb.connect(str(spill / "log.duckdb")) as base:
            base.execute(f"SET temp_directory = '{_quoted(spill / 'temp')}'")
            base.execute(f"SET memory_limit = '{_quoted(memory)}'")
            base.execute("SET enable_progress_bar = false")
            rows, per_second = _prepare(
                base, folder, log, k_core, drop_repeats, counts, titles
            )
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise StorageError(
            f"{spill}: DuckDB has not the room it needs ({one_line(error, 150)}); name "
            "a disk with more by --spill=, or give it more --memory="
        ) from error
    except duckdb.Error as error:
        raise InputError(
            f"{log.source}: DuckDB cannot prepare it ({one_line(error, 200)}); is "
            "--memory right, as in 8GB? Or prepare it with --engine=polars"
        ) from error
    finally:
        shutil.rmtree(spill, ignore_errors=True)
    return f"duckdb {duckdb.__version__}", rows, per_second


def spill_of(folder: Path) -> str:
    """The name of the files of `folder` among those of others on one disk. Whoever
    writes a folder holds its lock, so that nobody else has these."""
    return f"spill-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]}"


def check_disk(log: table.Stream, spill: Path) -> None:
    """Refuses, before anything is read, a disk that may be too small."""
    spill.mkdir(parents=True, exist_ok=True)
    wanted, free = disk_wanted(log.files), shutil.disk_usage(spill).free
    if free < wanted:
        raise StorageError(
            f"{spill}: has {free / 1e6:,.0f} MB free; DuckDB wants up to "
            f"{wanted / 1e6:,.0f} MB for {log.source}: name a disk with room by "
            "--spill="
        )


def disk_wanted(files: Sequence[str]) -> int:
    """Bytes that preparing these files may take, at most."""
    wanted = 0
    for name in files:
        if not os.path.isfile(name):  # inside an archive, or in the package
            continue
        size = os.path.getsize(name)
        with open(name, "rb") as file:
            start = file.read(512)
        if start[:4] == container.PARQUET:
            try:
                rows = pa.parquet.ParquetFile(name).metadata.num_rows
            except (pa.ArrowException, OSError):  # its reader says it better
                continue
            wanted += rows * DISK_A_ROW + 4 * size
        else:
            packed = bool(container.kind_of(start))
            wanted += 6 * size * (AS_MUCH_TEXT if packed else 1)
    return wanted


def _prepare(base, folder, log, k_core, drop_repeats, counts, titles):
    """(what became of the rows, units of time in a second)."""
    read, timed = _ingest(base, log)

    # Codes follow the ids sorted by their bytes, which is DuckDB's order of text.
    for key in ("user", "item"):
        base.execute(
            f"CREATE TABLE {key}s AS SELECT {key} AS id, row_number() OVER "
            f"(ORDER BY {key}) - 1 AS code FROM (SELECT DISTINCT {key} FROM raw)"
        )
        _check_ids(base, key, log.source)
    sizes = [_one(base, f"SELECT count(*) FROM {key}s") for key in ("user", "item")]
    check_counts((*sizes, read), counts, log.source)
    units, per_second = _unit(base) if timed else (1, 1)
    base.execute(
        "CREATE TABLE log AS SELECT users.code::INTEGER AS user, "
        f"items.code::INTEGER AS item, raw.time // {units} AS time, rating, row "
        "FROM raw JOIN users ON raw.user = users.id JOIN items ON raw.item = items.id"
    )
    base.execute("DROP TABLE raw")

    # The filters of `from_frame`, in its order.
    if drop_repeats:
        _replace_log(
            base,
            "SELECT user, item, time, rating, row FROM (SELECT *, lag(item) OVER "
            "(PARTITION BY user ORDER BY time, row) AS before FROM log) "
            "WHERE before IS DISTINCT FROM item",
        )
    left = single = _one(base, "SELECT count(*) FROM log")
    if k_core > 1:
        before = -1
        while left != before:
            before = left
            kept = [
                f"{key} IN (SELECT {key} FROM log GROUP BY {key} "
                f"HAVING count(*) >= {int(k_core)})"
                for key in ("user", "item")
            ]
            _replace_log(base, f"SELECT * FROM log WHERE {' AND '.join(kept)}")
            left = _one(base, "SELECT count(*) FROM log")
        check_core(left, single, read, k_core, log.source)

    # What is left, numbered without gaps.
    for key in ("user", "item"):
        base.execute(
            f"CREATE TABLE left_{key}s AS SELECT id, code, row_number() OVER "
            f"(ORDER BY code) - 1 AS number FROM {key}s WHERE code IN "
            f"(SELECT DISTINCT {key} FROM log)"
        )
    sizes = [
        _one(base, f"SELECT count(*) FROM left_{key}s") for key in ("user", "item")
    ]
    check_sizes(*sizes, k_core, log.source)
    rated = _one(base, "SELECT count(rating) FROM log") > 0
    _copy(
        base,
        "SELECT u.number::INTEGER AS user, (i.number + 1)::INTEGER AS item, log.time"
        f"{', log.rating' if rated else ''} FROM log "
        "JOIN left_users u ON log.user = u.code JOIN left_items i ON log.item = i.code "
        "ORDER BY u.number, log.time, log.row",
        folder / ROWS,
    )
    base.execute("DROP TABLE log")
    _copy(base, "SELECT id FROM left_users ORDER BY number", folder / USERS)
    query = "SELECT id FROM left_items ORDER BY number"
    if titles:
        names = pa.table({"id": list(titles), "title": list(titles.values())})
        base.register("names", names)
        query = (
            "SELECT i.id, names.title FROM left_items i LEFT JOIN names "
            "ON i.id = names.id ORDER BY i.number"
        )
    _copy(base, query, folder / ITEMS)
    return Rows(read, read - single, single - left), per_second


def _ingest(base, log: table.Stream) -> tuple[int, bool]:
    """(rows, whether their times are moments): the whole log as the table `raw`, in
    the order of the files."""
    base.execute(
        "CREATE TABLE raw (user VARCHAR, item VARCHAR, time BIGINT, rating FLOAT, "
        "row BIGINT)"
    )
    read, timed = 0, False
    base.execute("BEGIN")
    for block in log.blocks:
        timed = block["time"].dtype.is_temporal()
        times = block["time"].to_physical().cast(pl.Int64, strict=False)
        same = times.cast(block["time"].dtype) == block["time"]  # none: too large
        if not timed and not same.fill_null(False).all():
            raise InputError(
                f"{log.source}: found times that are no whole numbers of 64 bits, of "
                "which only the rank counts; prepare it with --engine=polars"
            )
        rating = "rating" if "rating" in block.columns else "NULL"
        base.register("block", block.with_columns(time=times).to_arrow())
        base.execute(
            f"INSERT INTO raw SELECT user, item, time, {rating}, {read} + "
            "row_number() OVER () FROM block"
        )
        base.unregister("block")
        read += block.height
    base.execute("COMMIT")
    if not read:
        raise InputError(
            f"{log.source}: the log is empty; expected rows of user, item, time"
        )
    return read, timed


def _check_ids(base, key: str, source: str) -> None:
    """As `refuse_missing`, of which the rare case alone is given ids."""
    words = ", ".join(f"'{_quoted(word)}'" for word in MISSING)
    missing, others = base.execute(
        "SELECT count(*) FILTER (word), count(*) FILTER (NOT word AND NOT number) "
        f"FROM (SELECT lower(id) IN ({words}) AS word, "
        f"regexp_matches(id, '{NUMBER}') AS number FROM {key}s)"
    ).fetchone()
    if missing and not others:
        ids = [row[0] for row in base.execute(f"SELECT id FROM {key}s").fetchall()]
        refuse_missing(pl.Series(ids), key, source)


def _unit(base) -> tuple[int, int]:
    """(nanoseconds in the coarsest unit that is exact, such units in a second)."""
    for per_second in (1, 10**3, 10**6):
        units = NANO // per_second
        if not _one(base, f"SELECT count(*) FROM raw WHERE time % {units} != 0"):
            return units, per_second
    return 1, NANO


def _replace_log(base, query: str) -> None:
    base.execute(f"CREATE TABLE kept AS {query}")
    base.execute("DROP TABLE log")
    base.execute("ALTER TABLE kept RENAME TO log")


def _copy(base, query: str, place: Path) -> None:
    place.mkdir()
    path = _quoted(place / "part-00000.parquet")
    base.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")


def _one(base, query: str) -> int:
    return base.execute(query).fetchone()[0]


def _quoted(text: object) -> str:
    """Inside quotes of SQL."""
    return str(text).replace("'", "''")


def _duckdb():
    try:
        import duckdb
    except ImportError:
        raise InputError(
            "--engine=duckdb needs DuckDB; install it with pip install "
            "'create_jax[prepare]', or use --engine=polars"
        ) from None
    return duckdb
