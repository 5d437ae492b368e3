"""A log whose rows stay on a disk, and its splits.

All splits here give training the first rows of each user. A part of a log is therefore
one number for each user, and its rows are copied for the asked users only. The numbers
are those of `splits`, to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from create_jax.data import splits
from create_jax.data.interactions import Interactions, Rows
from create_jax.data.packing import count_within
from create_jax.data.splits import Split

BLOCK = 1 << 20  # rows read at a time
BINS = 1 << 20  # of a first look at all times


@dataclass(frozen=True, eq=False)
class Stored:
    """The first rows of each user of a log, read where they are.

    items: [R] int32, times: [R] int64, ratings: [R] float32 or None: as in
      Interactions, of the whole log, mapped into memory.
    offsets: [U + 1] int64, where the rows of each user begin in the whole log.
    sizes: [U] int64, how many of them belong to this part.
    ids: "users" or "items" -> their external names, as strings.
    n_items: I. per_second, rows: as in Interactions. fingerprint: of the whole log.
    cuts: known quantiles of the times of the whole log, (q,) -> time, and, (q, p), the
      p quantile of those up to the q quantile.
    """

    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray | None
    offsets: np.ndarray
    sizes: np.ndarray
    ids: Callable[[str], pl.Series]
    n_items: int
    per_second: int
    rows: Rows
    fingerprint: str
    cuts: dict[tuple[float, ...], int]

    @property
    def n_users(self) -> int:
        return len(self.sizes)

    @property
    def n_rows(self) -> int:
        return int(self.sizes.sum())

    @property
    def user_ids(self) -> pl.Series:
        return self.ids("users")

    @property
    def item_ids(self) -> pl.Series:
        return self.ids("items")

    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """[U] begin and end of the rows of each user in `items`."""
        return self.offsets[:-1], self.offsets[:-1] + self.sizes

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Pieces of the whole log: (rows, [n] their users, [n] whether they belong to
        this part)."""
        for start in range(0, len(self.items), BLOCK):
            stop = min(start + BLOCK, len(self.items))
            users = users_of(self.offsets, start, stop)
            place = np.arange(start, stop) - self.offsets[users]
            yield slice(start, stop), users, place < self.sizes[users]

    def in_memory(self) -> Interactions:
        """This part as arrays; items and times of a whole log stay mapped."""
        users = np.repeat(np.arange(self.n_users, dtype=np.int32), self.sizes)
        rows = slice(None)
        if len(users) < len(self.items):
            rows = np.repeat(self.offsets[:-1], self.sizes) + count_within(self.sizes)
        return Interactions(
            users,
            self.items[rows],
            self.times[rows],
            self.user_ids,
            self.item_ids,
            None if self.ratings is None else self.ratings[rows],
            self.per_second,
            self.rows,
        )


def users_of(offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    """[stop - start] int32: the users of some rows."""
    first = np.searchsorted(offsets, start, "right") - 1
    last = np.searchsorted(offsets, stop, "left")
    sizes = np.diff(np.clip(offsets[first : last + 1], start, stop))
    return np.repeat(np.arange(first, last, dtype=np.int32), sizes)


def slices(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces."""
    return (array[start : start + BLOCK] for start in range(0, len(array), BLOCK))


def smallest(times: np.ndarray, places: Sequence[int]) -> list[int]:
    """The times that would stand at some places if all were sorted, by three passes in
    little memory."""
    extremes = [(int(block.min()), int(block.max())) for block in slices(times)]
    low, high = min(x for x, _ in extremes), max(x for _, x in extremes)
    width = np.uint64((high - low) // BINS + 1)

    def bins(some: np.ndarray) -> np.ndarray:
        return ((some - np.int64(low)).view(np.uint64) // width).astype(np.int64)

    counts = np.zeros(BINS, np.int64)
    for block in slices(times):
        counts += np.bincount(bins(block), minlength=BINS)
    ends = np.cumsum(counts)
    wanted = np.searchsorted(ends, places, "right")
    is_wanted = np.zeros(BINS, bool)
    is_wanted[wanted] = True
    # The different times of those bins, and how often each occurs.
    values, often = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for block in slices(times):
        some, n = np.unique(block[is_wanted[bins(block)]], return_counts=True)
        values, at = np.unique(np.append(values, some), return_inverse=True)
        often = np.bincount(at, np.append(often, n), len(values)).astype(np.int64)
    first = np.searchsorted(bins(values), wanted)  # of each bin
    sums = np.cumsum(often)
    skipped = sums[first] - often[first]
    inside = np.asarray(places) - (ends - counts)[wanted]
    return values[np.searchsorted(sums, skipped + inside, "right")].tolist()


# --- splits ---------------------------------------------------------------------------


def global_temporal(
    log: Stored, *, q_test: float, validation: str, q_val: float, seed: int, **rules
) -> Split:
    """`splits.global_temporal`."""
    past = _up_to(log, _cut(log, log, q_test))
    train, before = past, None
    if validation == "by_time":  # the past has the smallest times of all
        train = _up_to(log, _cut(log, past, q_test, q_val))
        before = train.sizes
    elif validation == "last_train_item":
        train = _without_last(past, np.ones(past.n_users, bool))
        before = train.sizes
    elif validation == "by_user":
        chosen = splits.random_users(past.sizes, seed)
        train = replace(past, sizes=np.where(chosen, 0, past.sizes))
        before = _without_last(past, chosen).sizes
    return _assemble(log, past, train, before, seed=seed, **rules)


def leave_one_out(log: Stored, *, validation: str, **rules) -> Split:
    """`splits.leave_one_out`."""
    splits.check_three_rows(int(log.sizes.max()))
    enough = log.sizes >= 3
    past = _without_last(log, enough)
    train, before = past, None
    if validation != "none":
        train = _without_last(past, enough)
        before = train.sizes
    return _assemble(log, past, train, before, **rules)


def _cut(log: Stored, part: Stored, *quantiles: float) -> int:
    """The last quantile, of the times of a part, which has the smallest of the log."""
    if quantiles not in log.cuts:
        place = splits.place_of(quantiles[-1], part.n_rows)
        return smallest(log.times, [place])[0]
    return log.cuts[quantiles]


def _up_to(log: Stored, cut: int) -> Stored:
    """The rows that are not later than a moment."""
    sizes = np.zeros(log.n_users, np.int64)
    for rows, users, inside in log.blocks():
        early = users[inside & (log.times[rows] <= cut)]
        if len(early):
            sizes[early[0] : early[-1] + 1] += np.bincount(early - early[0])
    return replace(log, sizes=sizes)


def _without_last(log: Stored, which: np.ndarray) -> Stored:
    """Without the last row of some users, where they have two."""
    return replace(log, sizes=log.sizes - (which & (log.sizes >= 2)))


def _assemble(
    log: Stored,
    past: Stored,
    train: Stored,
    before: np.ndarray | None,
    *,
    target: str,
    targets=splits.REPORTED,
    select_target: str = "",
    seed: int = 0,
    queries: int = 0,
    **rules,
) -> Split:
    """`splits.assemble`. before: [U] the rows of each user that stand before those of
    the validation; None = nothing is selected."""
    rules |= {"seed": seed}

    def hold_out(part: Stored, before: np.ndarray, known, target: str):
        asked = splits.asked_users(before, part.sizes - before, queries, seed)
        some = replace(part, sizes=np.where(asked, part.sizes, 0))
        kept = some.in_memory()
        held = count_within(some.sizes) >= before[kept.users]
        return splits.hold_out(kept, held, known, target=target, **rules)

    known = known_items(past)

    def validation(target: str):
        return hold_out(past, before, known_items(train), target)

    return splits.select_and_test(
        log,
        past,
        train,
        known,
        lambda target: hold_out(log, past.sizes, known, target),
        None if before is None else validation,
        target=target,
        targets=targets,
        select_target=select_target,
        train_users=int((past.sizes > 0).sum()),
        warm_users=int(((past.sizes > 0) & (log.sizes > past.sizes)).sum()),
        ties=_ties(log),
    )


def known_items(log: Stored) -> np.ndarray:
    """[I + 1] bool: the item occurs in the log. Padding does not."""
    known = np.zeros(log.n_items + 1, bool)
    for rows, _, inside in log.blocks():
        known[log.items[rows][inside]] = True
    return known


def _ties(log: Stored) -> int:
    """Rows with the same time as the user's row before, of a whole log."""
    found, last = 0, (-1, 0)
    for rows, users, _ in log.blocks():
        times = log.times[rows]
        found += int(((np.diff(users) == 0) & (np.diff(times) == 0)).sum())
        found += int(last == (users[0], times[0]))
        last = users[-1], times[-1]
    return found


# As `splits.SPLITS`: a split of somebody else is given the log in memory.
SPLITS = {"global_temporal": global_temporal, "leave_one_out": leave_one_out}


def stays(kind: str, ties: str, method_kind: str) -> bool:
    """Whether a run reads no more of its log than a Stored has."""
    return kind in SPLITS and ties == "file" and method_kind == "sequence"
