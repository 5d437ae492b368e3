"""What a system is: a frozen dataclass with these methods, fixed while a program runs.

`create.py` is the model of one; `mrgsrec.py` and `selfgnn.py` are others. Parameters
are a dict of groups, each with a separate optimizer. Losses, alignment and encoders
arrive resolved: no system reads a config after `from_config`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from create_jax import tables
from create_jax.models.alignment import Alignment
from create_jax.models.graph_encoder import Shapes, Vectors


@dataclass(frozen=True)
class System:
    """The fields that all have, and the interface.

    encoder: Linen module (x, positions, segments, train[, read]) -> states, or None.
    local: the next-item loss, (states [R * T, D], table, targets [R, T], key,
      axis_name=) -> scalar.
    graph: module of the graph encoder (graph_encoder.py), or None.
    graph_settings: the config's `graph` of that name, and `reduce`.
    precision: of float32 products in training, as `jax.default_matmul_precision`;
      alignment and ranking always have the highest.
    random: JAX's name of the generator of dropout and of sampled negatives.
    objective: `next` item, or `masked` items, of which a share `mask_share` is hidden.
      [MASK], which stands for them and ends each history, is the group `token` [D].
    reads_edges: whether its loss reads batches of pairs beside the sequences.
    splits_tables: whether it knows of tables in parts (tables.py).
    """

    n_users: int
    n_items: int
    dim: int
    encoder: nn.Module | None
    local: Callable
    align: Alignment
    graph: ModuleType | None
    graph_settings: dict
    item_std: float = 0.02
    user_std: float = 0.02
    precision: str = "highest"
    random: str = "threefry2x32"
    objective: str = "next"
    mask_share: float = 0.0
    reads_edges: ClassVar[bool] = False
    splits_tables: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config, sequence: ModuleType | None, **fields) -> "System":
        """The system of a config.

        Args:
          sequence: module of the sequence encoder; None = there is none, or its own.
          fields: of all systems, but for what depends on the sequence encoder.
        """
        raise NotImplementedError

    def init(self, seed: int) -> dict:
        """Parameters. Each group has a separate key, so it starts the same in any
        model."""
        raise NotImplementedError

    def loss(self, phase, params, batch, graph, key, axis_name=None):
        """L and its parts for one batch, split over the devices of `axis_name`.

        Args:
          phase, batch: steps.Phase, steps.StepBatch.

        Returns:
          (L, {name: part}), equal on every device.
        """
        raise NotImplementedError

    def trained_groups(self, phase) -> list[str]:
        """The parameter groups a phase trains, where the model has them."""
        raise NotImplementedError

    def queries_read_graph(self, *, by_graph: bool) -> bool:
        """Whether `query_tables` needs the arrays of the graph."""
        return True

    def query_tables(self, params, graph, *, by_graph: bool, axis_name=None):
        """What queries are read from, and the items [V, D] they are scored with: made
        once for all.

        Args:
          by_graph: rank by the users of the graph encoder, which a warm-up trains.
        """
        raise NotImplementedError

    def query_vectors(self, params, source, batch, *, by_graph: bool):
        """[B, D] of a batch of queries. source: the first of `query_tables`. One that
        splits tables takes `axis_name` as well."""
        raise NotImplementedError

    # --- what several share -----------------------------------------------------------

    @property
    def mask(self) -> int:
        """Id of the special slot that ends each sequence, 0 = none. No row of the item
        table has it (`look_up`)."""
        return self.n_items + 1 if self.objective == "masked" else 0

    @property
    def n_rows(self) -> int:
        """Of the item table: row 0 is padding, then the items."""
        return self.n_items + 1

    def init_tables(self, keys) -> dict:
        """The item table, the token and the parameters of the graph encoder."""
        masked = self.objective == "masked"
        shape = self.n_rows + masked, self.dim
        drawn = self.item_std * drawn_normal(keys[0], shape)
        params = {"item_table": drawn[: self.n_rows].at[0].set(0.0)}
        if masked:
            params["token"] = drawn[-1]
        if self.graph is None:
            return params
        users = drawn_normal(keys[2], (self.n_users, self.dim))
        params["user_table"] = self.user_std * users
        stds = self.user_std, self.item_std
        shapes = Shapes(self.n_users, self.n_rows, self.dim, *stds)
        own_key = jax.random.fold_in(keys[2], 1)
        own = self.graph.init(own_key, shapes, self.graph_settings)
        return params | {"graph": own} if own else params

    def look_up(self, table, ids, token=None, axis_name=None) -> jax.Array:
        """[..., D] rows of an item table, and where an id is `mask` the token.

        Args:
          ids: [...]. token: [D], or [..., D] one for each.
        """
        if not self.mask:
            return tables.look_up(table, ids, axis_name)
        special = ids == self.mask
        rows = tables.look_up(table, jnp.where(special, 0, ids), axis_name)
        return jnp.where(special[..., None], token, rows)

    def graph_vectors(self, params: dict, graph, axis_name=None) -> Vectors:
        """Vectors of the graph encoder."""
        return self.graph.encode(params, graph, self.graph_settings, axis_name)

    def local_loss(self, states, table, batch, key, axis_name=None) -> jax.Array:
        """Next-item loss over all positions with a target, L_local.

        Args:
          key: for the losses that sample items or directions.
        """
        key = jax.random.fold_in(key, 2)
        return self.local(states, table, batch.targets, key, axis_name=axis_name)

    def first_slots(self):
        """Example inputs of an encoder: [1, 1, D] vectors, [1, 1] numbers."""
        return jnp.zeros((1, 1, self.dim)), jnp.zeros((1, 1), jnp.int32)


def drawn_normal(key, shape) -> jax.Array:
    """Standard normal numbers that no compiler merges with the factor behind them: the
    same to the bit as part of a larger program and alone."""
    return jax.lax.optimization_barrier(jax.random.normal(key, shape))
