"""LightGCN (He et al. 2020, arXiv 2002.02126) on a jraph graph."""

import jax.numpy as jnp
import jraph
import numpy as np

from create_jax import losses, tables
from create_jax.data import graph as graphs
from create_jax.models.graph_encoder import Vectors
from create_jax.models.propagation import Matrix, graph_of, lay_out, product

PROPAGATES = True
SPLITS_TABLES = True
NEEDS = ()


def adjacency(users, items, n_users: int, n_rows: int) -> jraph.GraphsTuple:
    """R -> A~ = D^-1/2 A D^-1/2, A = [[0, R], [R^T, 0]], as edges in both directions.

    Nodes are users 0..U-1, then the rows of the item table.

    Args:
      users, items: [E] distinct pairs.
      n_users, n_rows: U and the number of rows of the item table.
    """
    senders = np.concatenate([users, items + n_users])
    receivers = np.concatenate([items + n_users, users])
    degree = np.bincount(receivers, minlength=n_users + n_rows)
    weights = 1.0 / np.sqrt(degree[senders] * degree[receivers])
    return graph_of(senders, receivers, weights, n_users + n_rows)


def prepare(rows, pairs, n_rows: int, settings: dict, shards: int = 1) -> Matrix:
    """A~ of the pairs, a symmetric matrix over users and rows of the item table."""
    n_users = len(pairs.offsets) - 1
    graph = adjacency(pairs.users, pairs.items, n_users, n_rows)
    return Matrix(lay_out(graph, n_users + n_rows, shards), None)


def init(key, shapes, settings: dict) -> dict:
    """No parameters beside the tables."""
    return {}


def encode(params, graph: Matrix, settings: dict, axis_name=None) -> Vectors:
    """Mean of layers 0..K of E^(k+1) = A~ E^(k); `normalise` takes the layers after the
    first at unit length (MRGSRec). Of split tables a device has all rows of some
    columns meanwhile."""
    names = "user_table", "item_table"
    users, items = (tables.columns(params[name], axis_name) for name in names)
    x = total = jnp.concatenate([users, items])
    for _ in range(settings["layers"]):
        x = product(x, graph, tables.copies_over(axis_name))
        total += losses.l2_normalise(x) if settings.get("normalise") else x
    total /= settings["layers"] + 1
    both = total[: len(users)], total[len(users) :]
    return Vectors(*(tables.rows(x, axis_name) for x in both))


def batches(rows, pairs, settings: dict, draw) -> graphs.EdgeBatch:
    """A uniform user, one of its items, one item it does not have."""
    return graphs.uniform_users(pairs, draw)


def loss(params, vectors: Vectors, batch, graph, settings: dict, axis_name=None):
    """BPR on propagated vectors, or GSAU's alignment and uniformity; and the L2 norm of
    the *ego* rows of the batch."""
    users, items = vectors[:2]
    ids = batch.users, batch.items, batch.negatives
    ego_items = params["item_table"]
    sources = users, items, items, params["user_table"], ego_items, ego_items
    wanted = zip(sources, ids * 2, strict=True)
    u, i, j, *ego = tables.look_ups(*wanted, axis_name=axis_name)
    if settings.get("loss", "bpr") == "bpr":
        scores = jnp.sum(u * i, -1), jnp.sum(u * j, -1)
        ranking = losses.bpr(*scores, batch.weights, axis_name=axis_name)
    else:
        common = batch.weights, axis_name
        spread = losses.uniformity(u, *common) + losses.uniformity(i, *common)
        ranking = losses.mean_alignment(u, i, *common) + settings["gamma"] * spread
    norms = 0.5 * sum(jnp.sum(x * x, -1) for x in ego)
    total = ranking + settings["l2"] * losses.weighted_mean(
        norms, batch.weights, axis_name
    )
    if settings["reduce"] == "sum":
        total *= losses.global_sum(batch.weights.sum(), axis_name)
    return total
