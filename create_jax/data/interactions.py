"""The log as arrays. Every loader ends here.

Ids in the whole project: item 0 is padding, real items are 1..I, special tokens come
after I; users are 0..U-1.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from create_jax.errors import InputError

MISSING = ("nan", "null", "none", "na", "n/a", "<na>", "nil", "\\n", "inf", "-inf")
NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?$"


class Rows(NamedTuple):
    """Counts of the rows of a file that were kept and dropped."""

    read: int
    repeats: int  # dropped: repeats of the item before
    k_core: int  # dropped: user or item with too few rows


class Interactions(NamedTuple):
    """A log of (user, item, time), sorted by (user, time, row in the file).

    users: [R] int32, 0..U-1.
    items: [R] int32, 1..I.
    times: [R] int64, in the coarsest unit in which they are whole.
    user_ids: [U] the external names, as strings.
    item_ids: [I] the external names, as strings; item i is `item_ids[i - 1]`.
    ratings: [R] float32, NaN where one is missing; None for a log without.
    per_second: units of `times` in a second: 1, 10**3, 10**6 or 10**9.
    rows: of the whole log, also in a part of it; None where nothing was read.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    ratings: np.ndarray | None = None
    per_second: int = 1
    rows: Rows | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_rows(self) -> int:
        return len(self.users)

    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """[U] begin and end of the rows of each user."""
        ends = np.cumsum(np.bincount(self.users, minlength=self.n_users))
        return np.concatenate([[0], ends[:-1]]), ends


def take(log: Interactions, rows: np.ndarray) -> Interactions:
    """The same ids, other rows: a mask, or their numbers in order."""
    ratings = None if log.ratings is None else log.ratings[rows]
    return log._replace(
        users=log.users[rows],
        items=log.items[rows],
        times=log.times[rows],
        ratings=ratings,
    )


def from_frame(
    frame: pl.DataFrame,
    *,
    source: str,
    k_core: int = 0,
    drop_repeats: bool = True,
    counts: Sequence[int] = (),
) -> Interactions:
    """Sorts, filters and codes a log.

    Repeats are dropped first, then the k-core is taken, as in time-to-split (Gusak et
    al. 2025). Codes follow the external ids sorted as strings, whatever the row order.

    Args:
      frame: columns user, item (strings, integers or categoricals), time (whole
        seconds, or Datetime) and perhaps rating, in the order of the file, which breaks
        ties.
      source: where the log comes from, for messages.
      k_core: every user and every item keeps at least this many interactions.
      drop_repeats: of consecutive interactions of a user with one item, keep the first.
      counts: expected users, items and interactions before any filter; () to skip.
    """
    if frame.is_empty():
        raise InputError(
            f"{source}: the log is empty; expected rows of user, item, time"
        )
    if any(frame[name].has_nulls() for name in ("user", "item", "time")):
        raise InputError(
            f"{source}: found empty users, items or times; drop those rows"
        )
    users, user_ids = _codes(frame["user"])
    items, item_ids = _codes(frame["item"])
    refuse_missing(user_ids, "user", source)
    refuse_missing(item_ids, "item", source)
    times, per_second = _exact(frame["time"])
    ratings = None
    if "rating" in frame.columns and frame["rating"].null_count() < frame.height:
        ratings = frame["rating"].to_numpy().astype(np.float32)
    log = Interactions(users, items, times, user_ids, item_ids, ratings, per_second)
    check_counts((len(user_ids), len(item_ids), len(times)), counts, source)

    log = take(log, in_order(users, times))
    del users, items, times, ratings
    if drop_repeats:
        keep = np.ones(len(log.users), bool)
        keep[1:] = np.diff(log.users) != 0
        keep[1:] |= np.diff(log.items) != 0
        log = take(log, keep)
    single = len(log.users)
    if k_core > 1:
        log = _k_core(log, k_core)
        check_core(len(log.users), single, frame.height, k_core, source)
        users, user_ids = _renumber(log.users, user_ids)
        items, item_ids = _renumber(log.items, item_ids)
        log = log._replace(
            users=users, items=items, user_ids=user_ids, item_ids=item_ids
        )
    check_sizes(len(user_ids), len(item_ids), k_core, source)
    if log.ratings is not None and np.isnan(log.ratings).all():
        log = log._replace(ratings=None)
    rows = Rows(frame.height, frame.height - single, single - len(log.users))
    return log._replace(items=log.items + 1, rows=rows)  # 0 is padding


def in_order(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The rows by (user, time); ties keep the order they have."""
    first = int(times.min())
    span = int(times.max()) - first + 1
    if (int(users.max()) + 1) * span < 2**63:  # one key sorts 2 to 5 times faster
        key = users.astype(np.int64)
        key *= span
        key += times - first
        return np.argsort(key, kind="stable")
    return np.lexsort((times, users))


def shuffle_ties(interactions: Interactions, seed: int) -> Interactions:
    """Puts the interactions of equal (user, time) in a random order."""
    users, times = interactions.users, interactions.times
    draw = np.random.default_rng(seed).permutation(len(users))
    return take(interactions, np.lexsort((draw, times, users)))


def as_date(interactions: Interactions, time: int) -> str:
    """A time of the log in words, UTC."""
    second, part = divmod(int(time), interactions.per_second)
    digits = len(str(interactions.per_second)) - 1
    return f"{np.datetime64(second, 's')}" + (f".{part:0{digits}}" if digits else "")


def places_of(item_ids: Sequence[str]) -> np.ndarray:
    """[I + 1] int32: the rank of each item among items of equal score, by a hash of its
    external id. So names and their order have no effect; they may follow time or
    popularity. Padding comes first."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8) for name in item_ids)
    hashes = np.frombuffer(b"".join(one.digest() for one in digests), np.dtype(">u8"))
    places = np.zeros(len(hashes) + 1, np.int32)
    places[1 + np.argsort(hashes, kind="stable")] = np.arange(1, len(places))
    return places


def fingerprint(interactions: Interactions) -> str:
    """A hash of the log, its order and its ids, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in interactions[:3]:
        digest.update(np.ascontiguousarray(array))
    if interactions.per_second > 1:
        digest.update(b"%d" % interactions.per_second)
    for ids in interactions[3:5]:
        digest.update(json.dumps(ids.to_list()).encode())
    if interactions.ratings is not None:
        digest.update(interactions.ratings)
    return digest.hexdigest()[:16]


def _exact(times: pl.Series) -> tuple[np.ndarray, int]:
    """[R] int64 in the coarsest unit that is exact, and how many make a second."""
    numbers = times.to_physical().to_numpy().astype(np.int64, copy=False)
    if not times.dtype.is_temporal():
        return numbers, 1
    finest = {"ms": 10**3, "us": 10**6, "ns": 10**9}[times.dtype.time_unit]
    for per_second in (1, 10**3, 10**6):
        units = finest // per_second
        if units <= 1:
            break
        whole, rest = np.divmod(numbers, units)
        if not rest.any():
            return whole, per_second
    return numbers, finest


def _codes(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    ids = column.unique().cast(pl.String).sort()
    if column.dtype != pl.Categorical:
        column = column.cast(pl.String)
    codes = column.cast(pl.Enum(ids)).to_physical()
    return codes.to_numpy().astype(np.int32), ids


def refuse_missing(ids: pl.Series, key: str, source: str) -> None:
    """Refuses a word such as "null" among numeric ids: many rows might share it."""
    missing = ids.filter(ids.str.to_lowercase().is_in(MISSING))
    numbers = ids.str.contains(NUMBER).sum()
    if len(missing) and numbers and numbers + len(missing) == len(ids):
        raise InputError(
            f"{source}: found no {key} but {missing[0]!r} in some rows, where all "
            "others are numbers; expected one in every row: drop those rows"
        )


def check_counts(found: Sequence[int], expected: Sequence[int], source: str) -> None:
    """Refuses other users, items and interactions than are expected; () = any."""
    if len(expected) and tuple(found) != tuple(expected):
        text = "{:,} users, {:,} items, {:,} interactions"
        raise InputError(
            f"{source}: found {text.format(*found)}; expected "
            f"{text.format(*expected)}: is it another release, or filtered? "
            "Fetch the official file, or load without counts"
        )


def check_core(left: int, single: int, read: int, k_core: int, source: str) -> None:
    """Refuses a k-core without rows, of `single` rows that `read` had no repeats."""
    if left:
        return
    repeats = ""
    if read > single:
        repeats = f" ({read - single:,} repeats dropped before, drop_repeats)"
    raise InputError(
        f"{source}: the {k_core}-core leaves no interactions of {single:,}{repeats}; "
        "lower k_core or bring a denser log"
    )


def check_sizes(n_users: int, n_items: int, k_core: int, source: str) -> None:
    """Refuses a log of one user or one item."""
    if min(n_users, n_items) < 2:
        after = f" after the {k_core}-core" if k_core > 1 else ""
        raise InputError(
            f"{source}: found {n_users} user(s) and {n_items} item(s){after}; expected "
            "at least 2 of each: are the columns right?"
        )


def _k_core(log, k):
    while True:
        enough = np.bincount(log.users)[log.users] >= k
        enough &= np.bincount(log.items)[log.items] >= k
        if enough.all():
            return log
        log = take(log, enough)


def _renumber(codes: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Closes the gaps that a filter left; the order of the ids stays."""
    present = np.bincount(codes, minlength=len(ids)) > 0
    new_codes = np.cumsum(present, dtype=np.int32) - 1
    return new_codes[codes], ids.filter(present)
