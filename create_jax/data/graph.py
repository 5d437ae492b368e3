"""The user-item graph as pairs, and each epoch's batches of them."""

from typing import NamedTuple

import numpy as np

from create_jax.data.interactions import Interactions


class Pairs(NamedTuple):
    """Distinct (user, item) pairs sorted by user, then item.

    users: [E] int32; items: [E] int32; offsets: [U + 1], user u's pairs are a slice.
    """

    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray


class EdgeBatch(NamedTuple):
    """P positive pairs of a step, stacked [S, ...] for S steps.

    negatives: [P] one for each pair (BPR), [P, n] many, or [n] shared by the step.
    weights: [P] 1 = real, 0 = filler.
    """

    users: np.ndarray
    items: np.ndarray
    negatives: np.ndarray
    weights: np.ndarray


def make_pairs(
    train: Interactions, *, last_n: int = 0, last_frac: float = 1.0
) -> Pairs:
    """All training pairs, or those of each user's last rows (CREATE, section 5.4).

    Args:
      last_n: keep the last N rows of each user; 0 = all.
      last_frac: keep the last ceil(f * rows), at least one.
    """
    counts = np.bincount(train.users, minlength=train.n_users)
    keep = np.minimum(counts, last_n or counts.max())
    keep = np.minimum(keep, np.ceil(counts * last_frac).astype(np.int64))
    from_end = np.cumsum(counts)[train.users] - 1 - np.arange(len(train.users))
    rows = from_end < np.maximum(keep, 1)[train.users]
    keys = train.users[rows].astype(np.int64) * (train.n_items + 1) + train.items[rows]
    users, items = np.divmod(np.unique(keys), train.n_items + 1)
    offsets = np.searchsorted(users, np.arange(train.n_users + 1))
    return Pairs(users.astype(np.int32), items.astype(np.int32), offsets)


def shuffled_pass(
    pairs: Pairs,
    *,
    steps: int,
    size: int,
    n_items: int,
    seed: int,
    epoch: int,
    negatives: tuple[int, ...],
    repeat: bool,
) -> EdgeBatch:
    """UltraGCN's epoch: pairs in random order, uniform negatives.

    Args:
      steps, size: S batches of P pairs.
      negatives: shape in a step: (n,) shared, or (P, n).
      repeat: where S * P is above E, start the order again; otherwise fill up with
        pairs of weight 0, at the ends of the batches.
    """
    rng = np.random.default_rng((seed, epoch, 0x65646765))
    n_pairs, wanted = len(pairs.users), steps * size
    order = np.resize(rng.permutation(n_pairs), wanted).reshape(size, steps).T
    weights = np.ones((size, steps), np.float32)
    if not repeat:
        weights.reshape(-1)[n_pairs:] = 0
    weights = weights.T
    drawn = rng.integers(1, n_items + 1, (steps, *negatives), dtype=np.int32)
    return EdgeBatch(pairs.users[order], pairs.items[order], drawn, weights)


def uniform_users(
    pairs: Pairs,
    *,
    steps: int,
    size: int,
    n_items: int,
    seed: int,
    epoch: int,
    batch_users: np.ndarray | None = None,
) -> EdgeBatch:
    """LightGCN's epoch: a uniform user, one of its items, one item it does not have.

    Args:
      batch_users: [S, B] draw only from these (-1 = none), or None for all users.
    """
    rng = np.random.default_rng((seed, epoch, 0x75696A))
    shape = (steps, size)
    users = _draw_users(pairs, batch_users, shape, rng)
    degree = np.diff(pairs.offsets)[users]
    items = pairs.items[pairs.offsets[users] + rng.integers(0, degree)]
    n_rows = n_items + 1
    known = pairs.users.astype(np.int64) * n_rows + pairs.items
    negatives = rng.integers(1, n_rows, shape, dtype=np.int32)
    for _ in range(100):  # a user who has everything keeps its last draw
        keys = users.astype(np.int64) * n_rows + negatives
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        taken = known[place] == keys
        if not taken.any():
            break
        negatives[taken] = rng.integers(1, n_rows, taken.sum(), dtype=np.int32)
    return EdgeBatch(users, items, negatives, np.ones(shape, np.float32))


def _draw_users(pairs, batch_users, shape, rng):
    if batch_users is None:
        active = np.flatnonzero(np.diff(pairs.offsets)).astype(np.int32)
        return active[rng.integers(0, len(active), shape)]
    # The real owners of each step first, then a uniform place among them.
    ordered = np.sort(batch_users, axis=1)[:, ::-1]
    count = (ordered >= 0).sum(1, keepdims=True)
    place = rng.integers(0, count, shape)
    return np.take_along_axis(ordered, place, axis=1).astype(np.int32)
