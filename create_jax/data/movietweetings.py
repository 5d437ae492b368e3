"""MovieTweetings 100K (Dooms et al. 2013): small, MIT licence, inside the package."""

import gzip
from collections.abc import Sequence
from importlib import resources

from create_jax.data import movielens, table
from create_jax.data.interactions import Interactions, from_frame

FOLDER = resources.files("create_jax.data") / "movietweetings"


def load(
    path: str = "",
    *,
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
) -> Interactions:
    """Loads `ratings.dat`, plain or compressed, the packaged one by default."""
    filters = {"k_core": k_core, "drop_repeats": drop_repeats, "counts": counts}
    if path:
        return table.load(path, **movielens.LAYOUT, **filters)
    source = "movietweetings/ratings.dat.gz"
    with (FOLDER / "ratings.dat.gz").open("rb") as file:
        frame = table.read(file, source, **movielens.LAYOUT)
    return from_frame(frame, source=source, **filters)


def titles(path: str = "") -> dict[str, str]:
    """The title and year of each packaged movie, by its external id."""
    with (FOLDER / "movies.dat.gz").open("rb") as file:
        lines = gzip.decompress(file.read()).decode().splitlines()
    return dict(line.split("::")[:2] for line in lines)
