"""Addresses and paths of the data sets."""

import os
from typing import NamedTuple

from create_jax.errors import InputError

AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
AMAZON_TERMS = (
    "no licence stated, do not redistribute; cite McAuley et al. (SIGIR 2015) and "
    "He and McAuley (WWW 2016)"
)


class Source(NamedTuple):
    """One file of one data set."""

    path: str  # below the data directory; "" for data inside the package
    url: str
    checksum: tuple[str, str] | None  # (algorithm, digest), where one is published
    terms: str


def _amazon(folder: str, category: str) -> Source:
    file = f"reviews_{category}_5.json.gz"
    return Source(f"{folder}/{file}", f"{AMAZON}/{file}", None, AMAZON_TERMS)


SOURCES = {
    "beauty": _amazon("amazon-beauty", "Beauty"),
    "sports": _amazon("amazon-sports", "Sports_and_Outdoors"),
    "clothing": _amazon("amazon-clothing", "Clothing_Shoes_and_Jewelry"),
    "office": _amazon("amazon-office", "Office_Products"),
    "ml1m": Source(
        "ml-1m/ml-1m.zip",
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        ("md5", "c4d9eecfca2ab87c1945afe126590906"),
        "no redistribution, no commercial use without permission; cite Harper and "
        "Konstan (TiiS 2015)",
    ),
    "yambda": Source(
        "yambda/likes.parquet",
        "https://huggingface.co/datasets/yandex/yambda/resolve/main/flat/50m/likes.parquet",
        None,
        "Apache-2.0; cite arXiv 2505.22238",
    ),
    "movietweetings": Source(
        "",
        "https://github.com/sidooms/MovieTweetings",
        None,
        "MIT; cite Dooms, De Pessemier and Martens (CrowdRec 2013)",
    ),
}

# A loader: a module with load(path, *, k_core, drop_repeats, counts, its settings) ->
# Interactions, and perhaps stream(path, its settings) -> table.Stream, the same in
# blocks, and titles(path) -> names of items by external id.
LOADERS = {
    name: f"create_jax.data.{name}"
    for name in ("amazon", "movielens", "movietweetings", "yambda", "table")
}


def data_directory() -> str:
    """`CREATE_JAX_DATA`, or `data` below the current directory."""
    return os.environ.get("CREATE_JAX_DATA") or "data"


def source(name: str) -> Source:
    """The source of a data set, by name."""
    if name not in SOURCES:
        raise InputError(
            f"found data set {name!r}; expected one of {', '.join(SOURCES)}"
        )
    return SOURCES[name]


def locate(name: str, path: str = "") -> str:
    """The path of a data set: `path` if given, its place in the data directory else.

    "" stands for the data inside the package.
    """
    known = source(name)
    if not path and not known.path:
        return ""
    found = path or os.path.join(data_directory(), known.path)
    if not os.path.exists(found):
        todo = "check the path" if path else f"run `python -m create_jax.fetch {name}`"
        raise InputError(
            f"{found}: no such file; expected {name}, officially at {known.url}: {todo}"
        )
    return found
