"""Yambda-50M likes (arXiv 2505.22238): one flat Parquet file.

Times are seconds from an unknown origin, in bins of 5 s: good for order, splits and
gaps, not for dates. A track may be liked twice by one user.
"""

from functools import partial

from create_jax.data import table

LAYOUT = {
    "columns": {"user": "uid", "item": "item_id", "time": "timestamp"},
    "format": "parquet",
    "time_unit": "s",
}

# Of `flat/50m/likes.parquet`.
load, stream = (partial(f, **LAYOUT) for f in (table.load, table.stream))
