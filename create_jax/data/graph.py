"""The user-item graph as pairs, and each epoch's batches of them."""

from typing import NamedTuple

import numpy as np

from create_jax.data.interactions import Interactions, take
from create_jax.data.streams import stream


class Pairs(NamedTuple):
    """Distinct (user, item) pairs sorted by user, then item.

    users: [E] int32; items: [E] int32; offsets: [U + 1], user u's pairs are a slice.
    ratings: [E] float32, or None where the log has none.
    """

    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    ratings: np.ndarray | None = None


class EdgeBatch(NamedTuple):
    """P positive pairs of a step, stacked [S, ...] for S steps.

    negatives: [P] one for each pair (BPR), [P, n] many, or [1, n] shared by the step;
      of a whole epoch they may be `Drawn`, which gives an array for a slice of steps.
    weights: [P] 1 = real, 0 = filler.
    """

    users: np.ndarray
    items: np.ndarray
    negatives: np.ndarray
    weights: np.ndarray


class Drawn:
    """The array rng.integers(1, n_items + 1, shape, int32). A slice of its first axis
    is drawn when it is read, because n items for every pair of an epoch fill the
    memory.

    Slices may be read in any order. Read in ascending order, none is drawn twice.
    """

    def __init__(self, rng, n_items: int, shape: tuple[int, ...]):
        self.rng, self.n_items, self.shape = rng, n_items, shape
        self.states = {0: rng.bit_generator.state}  # step -> state before it

    def __getitem__(self, steps: slice) -> np.ndarray:
        start, stop, _ = steps.indices(self.shape[0])
        known = max(step for step in self.states if step <= start)
        self.rng.bit_generator.state = self.states[known]
        for _ in range(known, start):
            self._draw(1)
        drawn = self._draw(stop - start)
        self.states[stop] = self.rng.bit_generator.state
        return drawn

    def _draw(self, count):
        shape = count, *self.shape[1:]
        return self.rng.integers(1, self.n_items + 1, shape, dtype=np.int32)


def graph_rows(train: Interactions, *, last_n: int = 0, last_frac: float = 1.0):
    """All training rows, or the last of each user (CREATE, section 5.4).

    Args:
      last_n: keep the last N rows of each user; 0 = all.
      last_frac: keep the last ceil(f * rows), at least one.
    """
    counts = np.bincount(train.users, minlength=train.n_users)
    keep = np.minimum(counts, last_n or counts.max())
    # Rounded first: 0.55 of 100 rows is a little above 55 in float64.
    share = np.ceil(np.round(counts * last_frac, 9)).astype(np.int64)
    keep = np.minimum(keep, share)
    from_end = np.cumsum(counts)[train.users] - 1 - np.arange(len(train.users))
    return take(train, from_end < np.maximum(keep, 1)[train.users])


def make_pairs(rows: Interactions) -> Pairs:
    """The distinct pairs of a log; the last rating counts."""
    keys = rows.users.astype(np.int64) * (rows.n_items + 1) + rows.items
    found, last = np.unique(keys[::-1], return_index=True)
    users, items = np.divmod(found, rows.n_items + 1)
    offsets = np.searchsorted(users, np.arange(rows.n_users + 1))
    ratings = None if rows.ratings is None else rows.ratings[::-1][last]
    return Pairs(users.astype(np.int32), items.astype(np.int32), offsets, ratings)


def part_of(pairs: Pairs, chosen: np.ndarray) -> Pairs:
    """The pairs where `chosen` [E] holds."""
    users, items = pairs.users[chosen], pairs.items[chosen]
    offsets = np.searchsorted(users, np.arange(len(pairs.offsets)))
    return Pairs(users, items, offsets)


def shuffled_pass(pairs: Pairs, negatives: tuple[int, int], draw) -> EdgeBatch:
    """UltraGCN's epoch: pairs in random order, uniform negatives.

    Args:
      negatives: shape in a step: (1, n) shared, or (P, n).
      draw: graph_encoder.Draw. Where S * P is above E, a joint epoch starts the order
        again; one of the graph alone fills up with pairs of weight 0, at the ends of
        the batches.
    """
    rng = stream("edge", draw.seed, draw.epoch)
    n_pairs, wanted = len(pairs.users), draw.steps * draw.size
    order = np.resize(rng.permutation(n_pairs), wanted)
    order = order.reshape(draw.size, draw.steps).T
    weights = np.ones((draw.size, draw.steps), np.float32)
    if not draw.joint:
        weights.reshape(-1)[n_pairs:] = 0
    drawn = Drawn(rng, draw.n_items, (draw.steps, *negatives))
    return EdgeBatch(pairs.users[order], pairs.items[order], drawn, weights.T)


def uniform_users(pairs: Pairs, draw, known: Pairs | None = None) -> EdgeBatch:
    """LightGCN's epoch: a uniform user, one of its items, one item it does not have.

    A user with all items keeps the first draw. A user whose 100 draws all were known
    items keeps the last draw.

    Args:
      draw: graph_encoder.Draw; with `owners`, users are drawn from these.
      known: pairs that no negative may be; None = `pairs`.
    """
    rng = stream("uij", draw.seed, draw.epoch)
    shape = draw.steps, draw.size
    users = _draw_users(pairs, draw.owners, shape, rng)
    items = one_of_each(pairs, users, rng)
    known, n_rows = known or pairs, draw.n_items + 1
    keys = known.users.astype(np.int64) * n_rows + known.items
    negatives = rng.integers(1, n_rows, shape, dtype=np.int32)
    lacks = np.diff(known.offsets) < draw.n_items
    doubtful = np.nonzero(lacks[users])
    for _ in range(100):
        wanted = users[doubtful].astype(np.int64) * n_rows + negatives[doubtful]
        taken = _among(keys, wanted)
        doubtful = tuple(axis[taken] for axis in doubtful)
        if not taken.any():
            break
        negatives[doubtful] = rng.integers(1, n_rows, taken.sum(), dtype=np.int32)
    return EdgeBatch(users, items, negatives, np.ones(shape, np.float32))


def _among(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each wanted key is in the sorted keys, of which at least one exists."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[place] == wanted


def one_of_each(pairs: Pairs, users: np.ndarray, rng) -> np.ndarray:
    """A uniform item of each user; any item where a user has none."""
    degree = np.diff(pairs.offsets)[users]
    place = pairs.offsets[users] + rng.integers(0, np.maximum(degree, 1))
    return pairs.items[np.minimum(place, len(pairs.items) - 1)]


def _draw_users(pairs, batch_users, shape, rng):
    if batch_users is None:
        active = np.flatnonzero(np.diff(pairs.offsets)).astype(np.int32)
        return active[rng.integers(0, len(active), shape)]
    # The real owners of each step come first, then a uniform index among them.
    ordered = np.sort(batch_users, axis=1)[:, ::-1]
    count = (ordered >= 0).sum(1, keepdims=True)
    place = rng.integers(0, count, shape)
    return np.take_along_axis(ordered, place, axis=1).astype(np.int32)
