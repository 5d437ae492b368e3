"""A next-item loss, an alignment, a split and a metric."""

import jax.numpy as jnp
import numpy as np

from create_jax import losses
from create_jax.data import splits
from create_jax.data.interactions import take


def margin(states, table, targets, key, *, n_items, axis_name=None, width=1.0):
    """Hinge of the target's score over the mean score of all items."""
    targets = targets.reshape(-1)
    own = jnp.sum(states * table[targets], -1)
    others = states @ table[1 : n_items + 1].mean(0)
    weights = (targets > 0).astype(states.dtype)
    gap = jnp.maximum(width - own + others, 0)
    return losses.weighted_mean(gap, weights, axis_name)


def cosine(a, b, weights, *, axis_name=None, power=1.0):
    """1 - cosine of the two vectors, to a power."""
    a, b = losses.l2_normalise(a), losses.l2_normalise(b)
    apart = (1 - jnp.sum(a * b, -1) + 1e-6) ** power
    return losses.weighted_mean(apart, weights, axis_name)


def newest(log, *, validation, rows=1, **rules):
    """The last rows of every user test; nothing is selected."""
    counts = np.bincount(log.users, minlength=log.n_users)
    from_end = np.cumsum(counts)[log.users] - 1 - np.arange(len(log.users))
    late = from_end < rows
    past = take(log, ~late)
    return splits.assemble(log, past, late, past, None, **rules)


def precision(hits, n_targets, *, factor=1.0):
    return factor * hits.mean(1)
