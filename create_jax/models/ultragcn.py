"""UltraGCN (Mao et al. 2021, arXiv 2110.15114): the graph as constraints."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from create_jax.data import graph as graphs
from create_jax.data.packing import count_within
from create_jax.losses import binary_cross_entropy, global_sum
from create_jax.models.graph_encoder import Vectors

PROPAGATES = False
NEEDS = ()


class Constraints(NamedTuple):
    """beta_ui = user_factor[u] * item_factor[i]; omega: the item-item graph.

    user_factor [U], item_factor [V], neighbours [V, S] int32, omega [V, S].
    """

    user_factor: np.ndarray
    item_factor: np.ndarray
    neighbours: np.ndarray
    omega: np.ndarray


def prepare(rows, pairs, n_rows: int, settings: dict, shards: int = 1) -> Constraints:
    """beta_ui = 1/d_u sqrt((d_u + 1) / (d_i + 1)), and each item's best neighbours.

    As in the published code, G = R^T R keeps its diagonal and
    omega_ij = G_ij sqrt(g_i + 1) / g_i / sqrt(g_j + 1), so an item is mostly its own
    first neighbour. Rows without interactions get zeros.
    """
    users, items, n_users = pairs.users, pairs.items, len(pairs.offsets) - 1
    n_neighbours = settings["neighbours"]
    d_u = np.bincount(users, minlength=n_users)
    d_i = np.bincount(items, minlength=n_rows)
    ones = np.ones(len(users), np.float32)
    ratings = scipy.sparse.csr_matrix((ones, (users, items)), shape=(n_users, n_rows))
    together = (ratings.T @ ratings).tocsr()
    g = np.asarray(together.sum(1)).ravel()
    sizes = np.diff(together.indptr)
    row = np.repeat(np.arange(n_rows), sizes)
    column = together.indices
    omega = together.data * np.sqrt(g[row] + 1) / g[row] / np.sqrt(g[column] + 1)
    order = np.lexsort((column, -omega, row))
    rank = count_within(sizes)
    best = rank < n_neighbours
    neighbours = np.zeros((n_rows, n_neighbours), np.int32)
    weights = np.zeros((n_rows, n_neighbours), np.float32)
    kept = order[best]
    neighbours[row[kept], rank[best]] = column[kept]
    weights[row[kept], rank[best]] = omega[kept]
    return Constraints(
        user_factor=(np.sqrt(d_u + 1) / np.maximum(d_u, 1) * (d_u > 0)).astype(
            np.float32
        ),
        item_factor=(1 / np.sqrt(d_i + 1)).astype(np.float32),
        neighbours=neighbours,
        omega=weights,
    )


def init(key, shapes, settings: dict) -> dict:
    """No parameters beside the tables."""
    return {}


def encode(params, graph, settings: dict, axis_name=None) -> Vectors:
    """The tables themselves: nothing propagates."""
    return Vectors(params["user_table"], params["item_table"])


def batches(rows, pairs, settings: dict, draw) -> graphs.EdgeBatch:
    """All pairs in random order, uniform negatives, of each pair or shared."""
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
    u, i = user_table[batch.users], item_table[batch.items]  # [P, D]
    user_factor = graph.user_factor[batch.users]  # [P]
    beta = user_factor * graph.item_factor[batch.items]
    positive = binary_cross_entropy(jnp.sum(u * i, -1), 1) * (w1 + w2 * beta)

    scores = scores_of_negatives(u, item_table, batch.negatives)
    negative_beta = user_factor[:, None] * graph.item_factor[batch.negatives]
    negative = binary_cross_entropy(scores, 0) * (w3 + w4 * negative_beta)

    neighbours = item_table[graph.neighbours[batch.items]]  # [P, S, D]
    similar = binary_cross_entropy(jnp.einsum("pd,psd->ps", u, neighbours), 1)
    similar = jnp.sum(similar * graph.omega[batch.items], -1)

    pairs = positive + settings["negative_weight"] * negative.mean(-1)
    pairs += settings["item_weight"] * similar
    total = global_sum(jnp.sum(pairs * batch.weights), axis_name)
    norms = jnp.sum(user_table**2) + jnp.sum(item_table**2)
    total += settings["norm_weight"] * 0.5 * norms
    if settings["reduce"] == "sum":
        return total
    return total / jnp.maximum(global_sum(batch.weights.sum(), axis_name), 1.0)


def scores_of_negatives(u: jax.Array, item_table: jax.Array, negatives: jax.Array):
    """u [P, D] with items [P, n], or [1, n] for all: [P, n].

    Where the catalogue is not much larger than n, scoring all of it and picking is less
    work than gathering n rows for each pair, and its gradient has no scatter of rows
    (2.6 times faster at 3,533 items, n = 200, D = 128; even at 32 items a negative).
    """
    if len(negatives) == 1:
        return u @ item_table[negatives[0]].T
    if len(item_table) <= 32 * negatives.shape[1]:
        return jnp.take_along_axis(u @ item_table.T, negatives, axis=1)
    return jnp.einsum("pd,pnd->pn", u, item_table[negatives])
