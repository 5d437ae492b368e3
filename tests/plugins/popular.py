"""A method: each user's vector and each item's, and an item's own popularity."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from create_jax.methods import Method
from create_jax.models.system import System

METHOD = Method(
    system="plugins.popular.Popular",
    sequence="own",
    fixed={"align.kind": "none"},
    defaults={"align.kind": "none", "graph.encoder": "none", "train.epochs": 2},
    user_rows={},
)
SETTINGS = {"start": 0.1}


@dataclass(frozen=True)
class Popular(System):
    start: float = 0.0

    @classmethod
    def from_config(cls, config, sequence, **fields):
        return cls(start=config.popular.start, **fields | {"encoder": None})

    def init(self, seed):
        users, items = jax.random.split(jax.random.key(seed))
        return {
            "user_table": jax.random.normal(users, (self.n_users, self.dim)),
            "item_table": jax.random.normal(items, (self.n_rows, self.dim)),
            "popularity": jnp.full((self.n_rows, 1), self.start),
        }

    def _tables(self, params):
        one = jnp.ones((self.n_users, 1))
        users = jnp.concatenate([params["user_table"], one], 1)
        return users, jnp.concatenate([params["item_table"], params["popularity"]], 1)

    def loss(self, phase, params, batch, graph, key, axis_name=None):
        users, items = self._tables(params)
        one = batch.sequences
        states = jnp.repeat(users[one.users[:1]], one.targets.size, 0)
        value = self.local_loss(states, items, one, key, axis_name)
        return value, {"local": value}

    def trained_groups(self, phase):
        return ["user_table", "item_table", "popularity"]

    def queries_read_graph(self, *, by_graph):
        return False

    def query_tables(self, params, graph, *, by_graph, axis_name=None):
        return self._tables(params)

    def query_vectors(self, params, source, batch, *, by_graph):
        return source[batch.users]
