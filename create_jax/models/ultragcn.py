"""UltraGCN (Mao et al. 2021, arXiv 2110.15114): the graph as constraints."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from create_jax import tables
from create_jax.data import graph as graphs
from create_jax.losses import global_sums
from create_jax.models.graph_encoder import Vectors

PROPAGATES = False
SPLITS_TABLES = True
NEEDS = ()
BLOCK = 2**20  # entries of R^T R that exist at once


class Constraints(NamedTuple):
    """beta_ui = user_factor[u] * item_factor[i]; omega: the item-item graph.

    user_factor [U], item_factor [V], neighbours [V, S] int32, omega [V, S].
    """

    user_factor: np.ndarray
    item_factor: np.ndarray
    neighbours: np.ndarray
    omega: np.ndarray


def prepare(rows, pairs, n_rows: int, settings: dict, shards: int = 1) -> Constraints:
    """beta_ui = 1/d_u sqrt((d_u + 1) / (d_i + 1)), and each item's best neighbours."""
    n_users = len(pairs.offsets) - 1
    d_u = np.bincount(pairs.users, minlength=n_users)
    d_i = np.bincount(pairs.items, minlength=n_rows)
    user_factor = np.sqrt(d_u + 1) / np.maximum(d_u, 1) * (d_u > 0)
    return Constraints(
        user_factor.astype(np.float32),
        (1 / np.sqrt(d_i + 1)).astype(np.float32),
        *best_neighbours(pairs, n_rows, settings["neighbours"]),
    )


def best_neighbours(pairs, n_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each item's k largest omega and whose they are, of equals the lowest id: ([V, k]
    int32, [V, k] float32), zeros where there are fewer.

    As in the published code, G = R^T R keeps its diagonal and
    omega_ij = G_ij sqrt(g_i + 1) / g_i / sqrt(g_j + 1) with G's row sums g, so an item
    is mostly its own first neighbour.

    Costs sum_u d_u^2 products, but G exists in blocks of rows: items with about as many
    neighbours share one.
    """
    shape = len(pairs.offsets) - 1, n_rows
    ones = np.ones(len(pairs.users), np.float32)
    by_user = scipy.sparse.csr_array((ones, (pairs.users, pairs.items)), shape)
    by_item = by_user.T.tocsr()
    g = by_item @ by_user.sum(1, dtype=np.float64)  # = G 1, exactly
    widths = np.minimum(g, n_rows).astype(np.int64)  # no row of G has more entries
    g = g.astype(np.float32)
    root = np.sqrt(g + 1)
    neighbours = np.zeros((n_rows, k), np.int32)
    omega = np.zeros((n_rows, k), np.float32)
    order = np.argsort(widths, kind="stable")
    order = order[np.searchsorted(widths[order], 1) :]
    while len(order):
        # As many rows as fit at the width of the widest, at least one.
        cells = np.arange(1, len(order) + 1) * np.maximum(widths[order], k)
        count = max(1, np.searchsorted(cells, BLOCK, side="right"))
        items, order = order[:count], order[count:]
        block = by_item[items] @ by_user
        sizes = np.diff(block.indptr)
        item, other = np.repeat(items, sizes), block.indices.astype(np.uint64)
        weight = block.data * root[item] / g[item] / root[other]
        # One number to sort by: positive floats are ordered as their bits are.
        largest_first = (~weight.view(np.uint32)).astype(np.uint64)
        width = max(k, sizes.max())
        keys = np.full((count, width), np.iinfo(np.uint64).max)
        keys[np.arange(width) < sizes[:, None]] = largest_first << 32 | other
        keys.partition(k - 1)
        best = np.sort(keys[:, :k])
        there = np.arange(k) < sizes[:, None]
        neighbours[items] = np.where(there, best & 0xFFFFFFFF, 0)
        bits = ~(best >> 32).astype(np.uint32)
        omega[items] = np.where(there, bits.view(np.float32), 0)
    return neighbours, omega


def init(key, shapes, settings: dict) -> dict:
    """No parameters beside the tables."""
    return {}


def encode(params, graph, settings: dict, axis_name=None) -> Vectors:
    """The tables themselves: nothing propagates."""
    return Vectors(params["user_table"], params["item_table"])


def batches(rows, pairs, settings: dict, draw) -> graphs.EdgeBatch:
    """All pairs in random order, uniform negatives, of each pair or shared.

    Of each pair, a dispatch holds S P n of them: 52 MB in 64 steps of 1,024 pairs with
    n = 200.
    """
    width = 1 if settings["shared_negatives"] else draw.size
    return graphs.shuffled_pass(pairs, (width, settings["negatives"]), draw)


def loss(params, vectors, batch, graph: Constraints, settings: dict, axis_name=None):
    """L_C + L_O, L_I and the norms, as the published code sums them.

    Args:
      batch: EdgeBatch; its negatives are [P, n] for each pair, or [1, n] shared by all,
        which turns their term into one matrix product.
      settings: w1..w4: a pair weighs w1 + w2 beta_ui, a negative w3 + w4 beta_uj.
        negative_weight: of the mean over negatives. item_weight: lambda, of L_I.
        norm_weight: gamma, of half the squared norm of both *whole* tables.
        reduce: `mean` divides everything by the number of pairs, `sum` does not.
    """
    user_table, item_table = vectors[:2]
    w1, w2, w3, w4 = (settings[name] for name in ("w1", "w2", "w3", "w4"))
    user_factor, item_factor, negative_factor, neighbours, omega = tables.look_ups(
        (graph.user_factor, batch.users),  # [P]
        (graph.item_factor, batch.items),
        (graph.item_factor, batch.negatives),
        (graph.neighbours, batch.items),  # [P, S]
        (graph.omega, batch.items),
        axis_name=axis_name,
    )
    wanted = [(user_table, batch.users), (item_table, batch.items)]
    if tables.is_split(axis_name):  # one message for all; of a whole table see below
        wanted += [(item_table, batch.negatives), (item_table, neighbours)]
    u, i, *others = tables.look_ups(*wanted, axis_name=axis_name)  # [P, D]
    beta = user_factor * item_factor
    # Binary cross-entropy: softplus(-x) of a pair, softplus(x) of a negative.
    positive = jax.nn.softplus(-jnp.sum(u * i, -1)) * (w1 + w2 * beta)

    scores = scores_of_negatives(u, item_table, batch.negatives, *others[:1])
    negative_beta = user_factor[:, None] * negative_factor
    negative = jax.nn.softplus(scores) * (w3 + w4 * negative_beta)

    neighbours = others[1] if others else item_table[neighbours]  # [P, S, D]
    similar = jax.nn.softplus(-jnp.einsum("pd,psd->ps", u, neighbours))
    similar = jnp.sum(similar * omega, -1)

    pairs = positive + settings["negative_weight"] * negative.mean(-1)
    pairs += settings["item_weight"] * similar
    sums = jnp.sum(pairs * batch.weights), batch.weights.sum()
    total, count = global_sums(sums, axis_name)
    norms = jnp.sum(user_table**2) + jnp.sum(item_table**2)
    norms = tables.group_sum(norms, axis_name)
    total += settings["norm_weight"] * 0.5 * norms
    if settings["reduce"] == "sum":
        return total
    return total / jnp.maximum(count, 1.0)


def scores_of_negatives(u, item_table, negatives, rows=None) -> jax.Array:
    """u [P, D] with items [P, n], or [1, n] for all: [P, n].

    Where the catalogue is not much larger than n, scoring all of it and picking is less
    work than gathering n rows for each pair, and its gradient has no scatter of rows
    (2.6 times faster at 3,533 items, n = 200, D = 128; even at 32 items a negative).
    The gathered rows of each pair are [P, n, D], 105 MB at P = 1,024 there.

    Args:
      rows: those of the negatives, where the table is in parts.
    """
    if len(negatives) == 1:
        return u @ (item_table[negatives[0]] if rows is None else rows[0]).T
    if rows is None and len(item_table) <= 32 * negatives.shape[1]:
        return jnp.take_along_axis(u @ item_table.T, negatives, axis=1)
    rows = item_table[negatives] if rows is None else rows
    return jnp.einsum("pd,pnd->pn", u, rows)
