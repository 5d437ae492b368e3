"""Titles of items in a file: CSV, JSON lines or Parquet with columns id and title."""

from pathlib import Path

import polars as pl
import pyarrow.parquet

from create_jax.data import container, parquet
from create_jax.errors import InputError, one_line

COLUMNS = ("id", "title")


def read(path: str) -> dict[str, str]:
    """Titles by external id. Ids are those that a log in the same form has; the last of
    an id counts, and an id without a title has none.

    Raises:
      InputError: no such file, damaged, or without the two columns.
    """
    try:
        frame = _frame(path)
        if set(COLUMNS) <= set(frame.columns):
            frame = frame.select(pl.col(*COLUMNS).cast(pl.String)).drop_nulls()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; expected a file of titles: check "
            "--config.data.table.titles"
        ) from None
    except Exception as error:  # polars raises many types
        raise InputError(
            f"{path}: cannot be read ({one_line(error, 150)}); expected CSV, JSON "
            "lines or Parquet with columns id and title"
        ) from None
    if not set(COLUMNS) <= set(frame.columns):
        raise InputError(
            f"{path}: found columns {', '.join(frame.columns[:8])}; expected id and "
            "title: rename them"
        )
    return dict(frame.iter_rows())


def _frame(path: str) -> pl.DataFrame:
    with open(path, "rb") as file:
        start = file.read(64)
    if start[:4] == container.PARQUET:
        frame = pl.read_parquet(path)
        if "id" not in frame.columns:
            return frame
        ids = pyarrow.parquet.read_table(path, columns=["id"])["id"]
        return frame.with_columns(id=parquet.texts(ids.combine_chunks()))
    if start.lstrip()[:1] == b"{":
        frame = pl.read_ndjson(path, schema=dict.fromkeys(COLUMNS, pl.String))
        return frame.select(c for c in frame if c.null_count() < len(c))
    if Path(path).suffix == ".tsv":
        # Quotes are letters there, or around the whole: one in front joins no lines.
        frame = pl.read_csv(path, infer_schema=False, separator="\t", quote_char=None)
        quoted = pl.all().str.replace(r'^"(.*)"$', "$1").str.replace_all('""', '"')
        return frame.with_columns(quoted)
    return pl.read_csv(path, infer_schema=False)
