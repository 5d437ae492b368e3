"""The hypergraph of CREATE-Uni: an edge holds the items of a user in a time window.

From the follow-up report of CREATE (formulas only, no published results) and UniGNN
(Huang and Yang 2021, arXiv 2105.00956). A hyperedge is {user} + its items in one window
of t hours. h_e is the mean of the members; then h_e is sent back to the members.
As in LightGCN there are no weight matrices between the layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from create_jax.models import lightgcn
from create_jax.models.graph_encoder import Vectors
from create_jax.models.propagation import Matrix, graph_of, lay_out, product

PROPAGATES = True
NEEDS = ("clock",)
batches = lightgcn.batches
loss = lightgcn.loss  # BPR on g_u . g_i


class Hypergraph(NamedTuple):
    """to_edges: mean of members [E, N]. to_nodes: back [N, E]. nodes, edges: [P] the
    incidence, for attention; empty without."""

    to_edges: Matrix
    to_nodes: Matrix
    nodes: np.ndarray
    edges: np.ndarray


def incidence(rows, window_hours: float) -> tuple[np.ndarray, np.ndarray]:
    """(nodes [P], edges [P]) of all memberships; users are nodes 0..U-1, item i is node
    U + i; windows count from the first time of the log."""
    width = int(window_hours * 3600 * rows.per_second)
    window = (rows.times - rows.times.min()) // width
    keys = rows.users.astype(np.int64) * (window.max() + 1) + window
    _, first, edge = np.unique(keys, return_index=True, return_inverse=True)
    pairs = np.unique(np.stack([edge, rows.items + rows.n_users]), axis=1)
    users = np.stack([np.arange(len(first)), rows.users[first]])
    edges, nodes = np.concatenate([users, pairs], axis=1)
    return nodes, edges


def prepare(rows, pairs, n_rows: int, settings: dict, shards: int = 1) -> Hypergraph:
    """The matrices of a two-stage pass."""
    nodes, edges = incidence(rows, settings["window_hours"])
    n_nodes, n_edges = rows.n_users + n_rows, edges.max() + 1
    size = np.bincount(edges)
    degree = np.bincount(nodes, minlength=n_nodes)
    back = np.ones(len(nodes))
    if settings["convolution"] == "gcn":
        edge_degree = np.bincount(edges, degree[nodes]) / size  # mean of its members
        back = 1 / np.sqrt(degree[nodes] * edge_degree[edges])
    attends = settings["convolution"] == "gat"
    return Hypergraph(
        _matrix(nodes, edges, 1 / size[edges], n_nodes, n_edges, shards),
        _matrix(edges, nodes, back, n_edges, n_nodes, shards),
        nodes.astype(np.int32) if attends else np.zeros(0, np.int32),
        edges.astype(np.int32) if attends else np.zeros(0, np.int32),
    )


def _matrix(senders, receivers, weights, n_senders, n_receivers, shards):
    graph = graph_of(senders, receivers, weights, n_senders + n_receivers)
    turned = graph._replace(senders=receivers, receivers=senders)
    return Matrix(
        lay_out(graph, n_receivers, shards), lay_out(turned, n_senders, shards)
    )


def init(key, shapes, settings: dict) -> dict:
    """epsilon [K] of UniGIN; attention [K, 2, D] of UniGAT, of node and hyperedge."""
    layers = settings["layers"]
    if settings["convolution"] == "gin":
        return {"epsilon": jnp.zeros(layers)}
    if settings["convolution"] == "gat":
        scale = shapes.dim**-0.5
        return {"attention": scale * jax.random.normal(key, (layers, 2, shapes.dim))}
    return {}


def encode(params, graph: Hypergraph, settings: dict, axis_name=None) -> Vectors:
    """Mean of layers 0..K. With h_e the mean of e's members, a layer is
    UniGCN: x_i' = sum_e h_e / sqrt(d_i d_e), d_e the mean degree of e's members;
    UniGIN: x_i' = (1 + epsilon) x_i + sum_e h_e;
    UniGAT: x_i' = sum_e softmax_e(leakyReLU(a . [x_i; h_e])) h_e.
    """
    users, items = params["user_table"], params["item_table"]
    x = total = jnp.concatenate([users, items])
    for layer in range(settings["layers"]):
        h = product(x, graph.to_edges, axis_name)
        if settings["convolution"] == "gat":
            x = attend(x, h, graph, params["graph"]["attention"][layer])
        else:
            spread = product(h, graph.to_nodes, axis_name)
            if settings["convolution"] == "gin":
                spread += (1 + params["graph"]["epsilon"][layer]) * x
            x = spread
        total += x
    total /= settings["layers"] + 1
    return Vectors(total[: len(users)], total[len(users) :])


def attend(x, h, graph: Hypergraph, attention):
    """UniGAT's way back; every device attends over the whole graph."""
    ours, theirs = attention
    scores = (x @ ours)[graph.nodes] + (h @ theirs)[graph.edges]
    weights = jraph.segment_softmax(
        jax.nn.leaky_relu(scores, 0.2), graph.nodes, num_segments=len(x)
    )
    messages = weights[:, None] * h[graph.edges]
    return jraph.segment_sum(messages, graph.nodes, num_segments=len(x))
