"""Yambda-50M likes (arXiv 2505.22238): one flat Parquet file.

Times are seconds from an unknown origin, in bins of 5 s: good for order, splits and
gaps, not for dates. A track may be liked twice by one user.
"""

from collections.abc import Sequence

from create_jax.data import table
from create_jax.data.interactions import Interactions

LAYOUT = {
    "columns": {"user": "uid", "item": "item_id", "time": "timestamp"},
    "format": "parquet",
    "time_unit": "s",
}


def load(
    path: str,
    *,
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
) -> Interactions:
    """Loads `flat/50m/likes.parquet`; see `from_frame`."""
    filters = {"k_core": k_core, "drop_repeats": drop_repeats, "counts": counts}
    return table.load(path, **LAYOUT, **filters)


def stream(path: str) -> table.Stream:
    """The same in blocks."""
    return table.stream(path, **LAYOUT)
