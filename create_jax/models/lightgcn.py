"""LightGCN (He et al. 2020, arXiv 2002.02126) on a jraph graph."""

from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import lax


def prepare(users, items, n_users: int, n_rows: int, shards: int = 1):
    """Edges of R -> jraph.GraphsTuple of A~ = D^-1/2 A D^-1/2, A = [[0, R], [R^T, 0]].

    Nodes are users 0..U-1, then the rows of the item table. Both directions are listed,
    sorted by receiver; weight-0 edges fill up to a multiple of `shards`.

    Args:
      users, items: [E] distinct pairs.
      n_users, n_rows: U and the number of rows of the item table.
    """
    n_nodes = n_users + n_rows
    senders = np.concatenate([users, items + n_users])
    receivers = np.concatenate([items + n_users, users])
    order = np.lexsort((senders, receivers))
    senders, receivers = senders[order], receivers[order]
    degree = np.bincount(receivers, minlength=n_nodes)
    weights = 1.0 / np.sqrt(degree[senders] * degree[receivers])
    padding = -len(senders) % shards
    return jraph.GraphsTuple(
        nodes=None,
        edges=np.pad(weights, (0, padding)).astype(np.float32),
        senders=np.pad(senders, (0, padding)).astype(np.int32),
        receivers=np.pad(receivers, (0, padding), mode="edge").astype(np.int32),
        n_node=np.array([n_nodes], np.int32),
        n_edge=np.array([len(senders) + padding], np.int32),
        globals=None,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def propagate(x: jax.Array, graph: jraph.GraphsTuple, axis_name: str | None = None):
    """A~ x for x [N, D]. With an `axis_name` each device holds a part of the edges.

    A~ is symmetric, so the gradient is the same propagation of the cotangent; its edges
    are sorted by receiver in both directions.
    """
    part = _propagate_own_edges(x, graph)
    return part if axis_name is None else lax.psum(part, axis_name)


def _propagate_own_edges(x, graph):
    messages = graph.edges[:, None] * x[graph.senders]  # [E, D]
    return jraph.segment_sum(
        messages, graph.receivers, x.shape[0], indices_are_sorted=True
    )


def _forward(x, graph, axis_name):
    return propagate(x, graph, axis_name), graph


def _backward(axis_name, graph, cotangent):
    # Devices' cotangents add up; each returns the part of its own edges, and the mean
    # over devices of the final gradients puts the parts together (parallel.py).
    if axis_name is not None:
        cotangent = lax.psum(cotangent, axis_name)
    return _propagate_own_edges(cotangent, graph), None


propagate.defvjp(_forward, _backward)


def encode(users, items, graph, *, layers: int, axis_name: str | None = None):
    """Mean of layers 0..K of E^(k+1) = A~ E^(k).

    users [U, D], items [V, D] -> propagated users [U, D], items [V, D].
    """
    x = jnp.concatenate([users, items])
    total = x
    for _ in range(layers):
        x = propagate(x, graph, axis_name)
        total += x
    total /= layers + 1
    return total[: len(users)], total[len(users) :]
