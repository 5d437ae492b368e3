"""Amazon reviews 2014, 5-core (McAuley et al. 2015): one JSON object a line.

Every review is a positive, whatever its stars. Times are whole days, so there are many
ties. Tied rows keep the order of the file.
"""

from collections.abc import Sequence

from create_jax.data import table
from create_jax.data.interactions import Interactions

LAYOUT = {
    "columns": {
        "user": "reviewerID",
        "item": "asin",
        "time": "unixReviewTime",
        "rating": "overall",
    },
    "format": "jsonl",
    "time_unit": "s",
}


def load(
    path: str,
    *,
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
) -> Interactions:
    """Loads `reviews_<category>_5.json.gz`; see `from_frame`."""
    filters = {"k_core": k_core, "drop_repeats": drop_repeats, "counts": counts}
    return table.load(path, **LAYOUT, **filters)


def stream(path: str) -> table.Stream:
    """The same in blocks."""
    return table.stream(path, **LAYOUT)
