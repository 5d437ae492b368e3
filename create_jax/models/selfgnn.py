"""Self-GNN (Liu et al. 2024, arXiv 2405.20878), see docs/models.md#self-gnn.

Training time is cut into T intervals. Each has a separate graph and tables. A user's
or item's T vectors pass an LSTM and self-attention; their mean is the long-term vector.
Recommends by the user's long-term vector and an attention over the history, on the
items' long-term vectors.

Written from a description and its formulas, and not compared with the authors' program
(github.com/HKUDS/SelfGNN), which differs:

* it normalises the input of each attention, and the items and positions of a history,
  passes each attention over the history through a leaky ReLU, and the gate through a
  hidden layer; its leaky ReLU has the slope 0.5, here 0.2, and stands in the products
  of the self-supervision too; it drops edges and states of the LSTM;
* it draws the two items of the self-supervision from those that the user has inside the
  interval, several pairs of them, here one pair of the history for all intervals. It
  weighs their sum by 1e-6, here their mean by 0.002, which is as much with one pair for
  each of its 512 users in four intervals;
* it weighs the squares of whole tables by 0.01, here those of the rows of the batch,
  halved;
* it has up to forty negatives of a user, here one.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from create_jax import losses
from create_jax.data.graph import make_pairs
from create_jax.data.interactions import take
from create_jax.models import lightgcn
from create_jax.models.propagation import product
from create_jax.models.system import System
from create_jax.models.transformer import (
    Attention,
    apply_encoder,
    initializer,
    segment_mask,
    sequence_of_slot,
)

PROPAGATES = False  # it is not a graph encoder of CREATE
NEEDS = ("clock",)
MEMORY_HEADS = 16


def leaky(x):
    """LeakyReLU."""
    return jax.nn.leaky_relu(x, 0.2)


class Encoder(nn.Module):
    """Residual self-attention over long-term item vectors and positions."""

    blocks: int
    heads: int
    dropout: float
    max_len: int
    feed_forward: int  # there is none; every encoder is built with the same fields

    @nn.compact
    def __call__(self, x, positions, segments, train: bool):
        """[R, T, D] item vectors, [R, T] positions and segments -> [R, T, D]."""
        table = self.param("positions", initializer, (self.max_len, x.shape[-1]))
        mask = segment_mask(segments, causal=False)
        x = x + table[positions]
        for block in range(self.blocks):
            attention = Attention(self.heads, self.dropout, name=f"attention_{block}")
            x = x + attention(x, x, mask, train)
        return x * (segments > 0)[..., None]


class Memory(nn.Module):
    """[N, T, D] vectors of the intervals -> [N, D] long-term vectors."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(x.shape[-1]), name="lstm")(x)
        everything = jnp.ones((1, 1, 1, x.shape[1]), bool)
        heads = np.gcd(MEMORY_HEADS, x.shape[-1])
        attention = Attention(int(heads), 0.0, name="attention")
        return attention(x, x, everything, False).mean(1)


def prepare(rows, pairs, n_rows: int, settings: dict, shards: int = 1):
    """The normalised adjacency of each interval of equal length."""
    start, count = rows.times.min(), settings["intervals"]
    span = int(rows.times.max()) - int(start) + 1
    # First times of the second and later intervals.
    begins = [-(-span * t // count) for t in range(1, count)]
    interval = np.searchsorted(begins, rows.times - start, side="right")
    return tuple(
        lightgcn.prepare(
            None, make_pairs(take(rows, interval == t)), n_rows, settings, shards
        )
        for t in range(count)
    )


def long_term(params: dict, intervals):
    """[T, N, D] -> [N, D]."""
    return Memory().apply({"params": params["memory"]}, intervals.swapaxes(0, 1))


@dataclass(frozen=True)
class SelfGNN(System):
    """Its graph module is this module. It reads no loss settings of the config."""

    @classmethod
    def from_config(cls, config, sequence, **fields) -> "SelfGNN":
        fields["encoder"] = Encoder(**fields["encoder"])
        return cls(**fields)

    def init(self, seed: int) -> dict:
        """Tables of each interval [T, U, D], [T, V, D], the memory, the attention."""
        keys = jax.random.split(jax.random.key(seed), 5)
        count = self.graph_settings["intervals"]
        users = jax.random.normal(keys[0], (count, self.n_users, self.dim))
        items = jax.random.normal(keys[1], (count, self.n_rows, self.dim))
        x, empty = jnp.zeros((1, 1, self.dim)), jnp.zeros((1, 1), jnp.int32)
        gate = nn.Dense(1).init(keys[4], jnp.zeros((1, 3 * self.dim)))
        return {
            "user_table": self.user_std * users,
            "item_table": (self.item_std * items).at[:, 0].set(0.0),
            "memory": Memory().init(keys[2], jnp.zeros((1, count, self.dim)))["params"],
            "sequence": self.encoder.init(keys[3], x, empty, empty, False)["params"],
            "gate": gate["params"],
        }

    def trained_groups(self, phase) -> list[str]:
        """Everything is trained at once."""
        return ["user_table", "item_table", "memory", "sequence", "gate"]

    def encode_intervals(self, params: dict, graph, axis_name=None):
        """[T, U + V, D]: sums over layers of E^(k+1) = E^(k) + leakyReLU(A_t E^(k))."""
        found = []
        for users, items, matrix in zip(
            params["user_table"], params["item_table"], graph, strict=True
        ):
            x = total = jnp.concatenate([users, items])
            for _ in range(self.graph_settings["layers"]):
                x = x + leaky(product(x, matrix, axis_name))
                total += x
            found.append(total)
        return jnp.stack(found)

    def attend(self, params, items, batch, train=False, key=None):
        """[B, D] leakyReLU of the attention summed over each packed history."""
        states = apply_encoder(
            self.encoder,
            params["sequence"],
            items[batch.items],
            batch,
            train=train,
            key=key,
        )
        owner = sequence_of_slot(batch)
        real = batch.segments.reshape(-1) > 0
        owner = jnp.where(real, owner, len(batch.users))
        total = jax.ops.segment_sum(states, owner, len(batch.users) + 1)
        return leaky(total[:-1])

    def loss(self, phase, params, batch, graph, key, axis_name=None):
        """Hinge(u.i + a.i) + decay * norms + ssl * personalised self-supervision."""
        settings, batch = self.graph_settings, batch.sequences
        intervals = self.encode_intervals(params, graph, axis_name)
        vectors = long_term(params, intervals)
        users, items = vectors[: self.n_users], vectors[self.n_users :]
        weights = batch.weights
        u = users[batch.users]
        query = u + self.attend(params, items, batch, True, key)
        target = batch.targets.reshape(-1)[batch.last]
        draws = jax.random.split(jax.random.fold_in(key, 4), 3)
        negative = jax.random.randint(draws[0], target.shape, 1, self.n_items + 1)
        gap = jnp.sum(query * (items[target] - items[negative]), -1)
        hinge = losses.weighted_mean(jax.nn.relu(1 - gap), weights, axis_name)

        # Two items of the user's history, with their vectors in each interval.
        length = batch.positions.reshape(-1)[batch.last] + 1
        places = [
            batch.last - jnp.floor(jax.random.uniform(draw, length.shape) * length)
            for draw in draws[1:]
        ]
        flat = batch.items.reshape(-1)
        first, second = (flat[place.astype(jnp.int32)] for place in places)
        short_users = intervals[:, : self.n_users][:, batch.users]  # [T, B, D]
        short_items = intervals[:, self.n_users :]
        gaps = jnp.sum(
            short_users * (short_items[:, first] - short_items[:, second]), -1
        )
        long_gap = jnp.sum(u * (items[first] - items[second]), -1)
        both = jnp.broadcast_to(u, short_users.shape)
        features = jnp.concatenate([both, short_users, both * short_users], -1)
        gate = jax.nn.sigmoid(nn.Dense(1).apply({"params": params["gate"]}, features))
        gate = gate[..., 0] * jax.lax.stop_gradient(long_gap)
        selves = jax.nn.relu(1 - gate * gaps).mean(0)
        selves = losses.weighted_mean(selves, weights, axis_name)

        user_rows = params["user_table"][:, batch.users]
        item_rows = params["item_table"][:, target]
        norms = 0.5 * jnp.sum(user_rows**2 + item_rows**2, (0, 2))
        decay = losses.weighted_mean(norms, weights, axis_name)
        parts = {"local": hinge, "global": selves, "decay": decay}
        total = hinge + settings["self_weight"] * selves + settings["decay"] * decay
        return total, parts

    def query_tables(self, params, graph, *, by_graph: bool, axis_name=None):
        """Long-term users and items."""
        vectors = long_term(params, self.encode_intervals(params, graph, axis_name))
        users, items = vectors[: self.n_users], vectors[self.n_users :]
        return (users, items), items

    def query_vectors(self, params, source, batch, *, by_graph: bool):
        """u + leakyReLU(attention over the history), [B, D]."""
        users, items = source
        return users[batch.users] + self.attend(params, items, batch)
