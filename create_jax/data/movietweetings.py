"""MovieTweetings 100K (Dooms et al. 2013): small, MIT licence, inside the package."""

import gzip
from functools import partial
from importlib import resources

from create_jax.data import movielens, table
from create_jax.data.interactions import Interactions

FOLDER = resources.files("create_jax.data") / "movietweetings"


def load(path: str = "", **filters) -> Interactions:
    """Loads `ratings.dat`, plain or compressed, the packaged one by default."""
    return table.collect(stream(path), **filters)


def stream(path: str = "") -> table.Stream:
    """The same in blocks."""
    if path:
        return table.stream(path, **movielens.LAYOUT)
    source = "movietweetings/ratings.dat.gz"
    opened = partial((FOLDER / "ratings.dat.gz").open, "rb")
    return table.stream_from({source: opened}, source, **movielens.LAYOUT)


def titles(path: str = "") -> dict[str, str]:
    """The title and year of each packaged movie, by its external id."""
    with (FOLDER / "movies.dat.gz").open("rb") as file:
        lines = gzip.decompress(file.read()).decode().splitlines()
    return dict(line.split("::")[:2] for line in lines)
