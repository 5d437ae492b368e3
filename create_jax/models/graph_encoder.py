"""What a graph encoder is: a module with these names (lightgcn.py is the model).

- PROPAGATES: whether its vectors differ from the tables.
- SPLITS_TABLES: True where it knows of tables in parts (tables.py); it may be missing.
- NEEDS: parts of a log it cannot do without, of `ratings` and `clock`.
- prepare(rows, pairs, n_rows, settings, shards) -> arrays of the graph.
- init(key, shapes, settings) -> its own parameters beside the two tables, {} = none.
- encode(params, graph, settings, axis_name) -> Vectors. params: `user_table` [U, D],
  `item_table` [V, D] (row 0 is padding) and, unless {}, what `init` gave as `graph`.
- batches(rows, pairs, settings, draw) -> what `loss` reads, stacked [S, ...].
- loss(params, vectors, batch, graph, settings, axis_name) -> L_global.

`settings` are the config's `graph` of that name, and `reduce`. `rows` are the training
rows the graph is made of, `pairs` the distinct pairs in them.
"""

from typing import NamedTuple

import jax
import numpy as np


class Vectors(NamedTuple):
    """users [U, D], items [V, D]; averse: the same of a graph of dislikes, or None."""

    users: jax.Array
    items: jax.Array
    averse_users: jax.Array | None = None
    averse_items: jax.Array | None = None


class Shapes(NamedTuple):
    """Sizes and initial deviations of tables: U, V, D."""

    n_users: int
    n_rows: int
    dim: int
    user_std: float
    item_std: float


class Draw(NamedTuple):
    """An epoch's batches: S steps of P pairs, pure in (seed, epoch).

    joint: beside sequences; alone an epoch is one pass over the pairs.
    owners: [S, B] draw from these users only, -1 = none; None = from all.
    """

    steps: int
    size: int
    n_items: int
    seed: int
    epoch: int
    joint: bool
    owners: np.ndarray | None
