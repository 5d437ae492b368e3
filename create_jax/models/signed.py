"""The signed graph of CREATE-Pone: likes and dislikes propagate apart.

From the follow-up report of CREATE (formulas only, no published results). Every node
has an interest vector z on the graph of likes G_p and a disinterest vector v on the
graph of dislikes G_n. Choices that the report leaves open: disinterest has its tables;
epsilon is one number a graph; a node without neighbours keeps (1 + epsilon) times its
vector; i' of L_CL is the disliked item of the step; the contrastive part counts at
every step, not at every tenth epoch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from create_jax import losses
from create_jax.data import graph as graphs
from create_jax.data.streams import stream
from create_jax.errors import InputError
from create_jax.models import lightgcn
from create_jax.models.graph_encoder import Vectors
from create_jax.models.propagation import Matrix, product

PROPAGATES = True
NEEDS = ("ratings",)


class Side(NamedTuple):
    """One of the two graphs: A~ and 1 / max(|N|, 1) [N]."""

    matrix: Matrix
    own: np.ndarray


class SignedBatch(NamedTuple):
    """P liked pairs of a step, stacked [S, ...]; negatives [P] are unobserved items.

    disliked: [P] an item the user dislikes; disliked_weights: [P] 0 = there is none.
    """

    users: np.ndarray
    items: np.ndarray
    negatives: np.ndarray
    weights: np.ndarray
    disliked: np.ndarray
    disliked_weights: np.ndarray


def split_pairs(pairs: graphs.Pairs, liked_from: float):
    """Pairs rated at least `liked_from`, and those rated below; unrated in neither."""
    return (
        graphs.part_of(pairs, pairs.ratings >= liked_from),
        graphs.part_of(pairs, pairs.ratings < liked_from),
    )


def prepare(rows, pairs, n_rows: int, settings: dict, shards: int = 1):
    """(G_p, G_n) as Sides.

    Raises: InputError where the rows hold no like.
    """
    parts = split_pairs(pairs, settings["liked_from"])
    if not len(parts[0].users):
        raise InputError(
            f"no training row has a rating of {settings['liked_from']:g} or more; "
            "lower config.graph.signed.liked_from or keep more rows"
        )
    return tuple(
        Side(lightgcn.prepare(None, part, n_rows, settings, shards), _own(part, n_rows))
        for part in parts
    )


def _own(pairs, n_rows):
    of_items = np.bincount(pairs.items, minlength=n_rows)
    degree = np.concatenate([np.diff(pairs.offsets), of_items])
    return (1 / np.maximum(degree, 1)).astype(np.float32)


def init(key, shapes, settings: dict) -> dict:
    """Disinterest tables, and epsilon [2] of G_p and G_n."""
    users, items = jax.random.split(key)
    user_shape = shapes.n_users, shapes.dim
    item_shape = shapes.n_rows, shapes.dim
    return {
        "averse_users": shapes.user_std * jax.random.normal(users, user_shape),
        "averse_items": shapes.item_std * jax.random.normal(items, item_shape),
        "epsilon": jnp.zeros(2),
    }


def encode(params, graph, settings: dict, axis_name=None) -> Vectors:
    """Mean of layers 0..K of x' = (1 + epsilon) / |N| x + A~ x, on each graph."""
    own, found = params["graph"], []
    tables = (
        (params["user_table"], params["item_table"]),
        (own["averse_users"], own["averse_items"]),
    )
    for (users, items), side, epsilon in zip(
        tables, graph, own["epsilon"], strict=True
    ):
        x = total = jnp.concatenate([users, items])
        for _ in range(settings["layers"]):
            kept = (1 + epsilon) * side.own[:, None] * x
            x = kept + product(x, side.matrix, axis_name)
            total += x
        total /= settings["layers"] + 1
        found += [total[: len(users)], total[len(users) :]]
    return Vectors(*found)


def batches(rows, pairs, settings: dict, draw) -> SignedBatch:
    """LightGCN's batch of likes, and a dislike of the same users."""
    liked, disliked = split_pairs(pairs, settings["liked_from"])
    edges = graphs.uniform_users(liked, draw, known=pairs)
    likes = np.diff(liked.offsets)[edges.users] > 0  # an owner may have no like
    edges = edges._replace(weights=likes.astype(np.float32))
    if not len(disliked.users):
        return SignedBatch(*edges, edges.items, np.zeros_like(edges.weights))
    rng = stream("disl", draw.seed, draw.epoch)
    items = graphs.one_of_each(disliked, edges.users, rng)
    has = np.diff(disliked.offsets)[edges.users] > 0
    return SignedBatch(*edges, items, has.astype(np.float32))


def loss(params, vectors: Vectors, batch, graph, settings: dict, axis_name=None):
    """L_DF + contrastive * L_CL, means over pairs.

    L_DF = mean -log s(z_u z_i - z_u z_j) + mean -log s(v_u v_j - b v_u v_i'),
    L_CL = mean -log (e^(z_u z_i / t) / (e^(z_u z_i / t) + e^(v_u v_i' / t))).
    """
    z_users, z_items, v_users, v_items = vectors
    z, v = z_users[batch.users], v_users[batch.users]

    def scores(users, items, ids):
        return jnp.sum(users * items[ids], -1)

    liked, unseen = scores(z, z_items, batch.items), scores(z, z_items, batch.negatives)
    averse = scores(v, v_items, batch.disliked)
    unseen_averse = scores(v, v_items, batch.negatives)
    b, temperature = settings["averse_weight"], settings["temperature"]
    feedback = losses.bpr(liked, unseen, batch.weights, axis_name=axis_name)
    has = batch.disliked_weights
    feedback += losses.bpr(unseen_averse, b * averse, has, axis_name=axis_name)
    contrast = jax.nn.softplus((averse - liked) / temperature)
    contrast = losses.weighted_mean(contrast, has * batch.weights, axis_name)
    total = feedback + settings["contrastive"] * contrast
    if settings["reduce"] == "sum":
        total *= losses.global_sum(batch.weights.sum(), axis_name)
    return total
