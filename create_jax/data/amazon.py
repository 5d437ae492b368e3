"""Amazon reviews 2014, 5-core (McAuley et al. 2015): one JSON object a line.

Every review is a positive, whatever its stars. Times are whole days, so there are many
ties. Tied rows keep the order of the file.
"""

from functools import partial

from create_jax.data import table

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

# Of `reviews_<category>_5.json.gz`.
load, stream = (partial(f, **LAYOUT) for f in (table.load, table.stream))
