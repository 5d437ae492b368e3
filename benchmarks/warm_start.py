"""SASRec on an item table that does not begin at random: what a warm-up by the graph is
compared with. A method by its dotted path, as any of a user's:

python -m benchmarks.regularisation run beauty \
  benchmarks.warm_start@warm_start.start=svd --dropout=0.5

`prepare` makes the table of a log first. All its rows are as long as the median row of
Beauty's table after ten epochs of UltraGCN (`--config=beauty:ultragcn
--config.split.validation=none --config.train.epochs=10`, measured in its checkpoint by
hand). A random row is an eighth of that: as a control `start=random` has random rows of
this length.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from create_jax.data.graph import make_pairs
from create_jax.data.interactions import Interactions
from create_jax.errors import bad_setting
from create_jax.methods import Method
from create_jax.models import svd
from create_jax.models.create import Create

METHOD = Method(system="benchmarks.warm_start.Warm", sequence="sasrec", graph="none")
SETTINGS = {"start": "svd"}
LENGTH = 1.27  # of a row
TABLES = {}  # (start, dim) -> [I + 1, D], of the log that was prepared last


@dataclass(frozen=True)
class Warm(Create):
    start: str = ""

    @classmethod
    def from_config(cls, config, sequence, **fields) -> "Warm":
        return super().from_config(
            config, sequence, start=config.warm_start.start, **fields
        )

    def init(self, seed: int) -> dict:
        params = super().init(seed)
        table = in_length(np.asarray(params["item_table"]))
        if self.start != "random":
            made = TABLES[self.start, self.dim]
            table = np.where(made.any(1, keepdims=True), made, table)
        return params | {"item_table": jnp.asarray(table)}


def prepare(log: Interactions, start: str, dim: int) -> None:
    """Makes the table of a log; rows without a training row stay zero there.

    start: svd, the factors of PureSVD; walk, those of the pointwise mutual information
      (its positive part) of the two items that a random walk item, user, item meets
      (DeepWalk as a factorisation, Qiu et al. 2018, at one step); random, none.
    """
    if start == "random":
        return
    users, items = make_pairs(log)[:2]
    shape = log.n_users, log.n_items + 1
    if start == "svd":
        table = svd.item_factors(users, items, *shape, dim)
    elif start == "walk":
        table = of_walks(users, items, shape, dim)
    else:
        raise bad_setting("warm_start.start", start, "svd, walk or random")
    TABLES[start, dim] = in_length(table)


def of_walks(users, items, shape: tuple[int, int], dim: int) -> np.ndarray:
    """[I + 1, D] U sqrt(S) of the positive pointwise mutual information."""
    ones = np.ones(len(users))
    pairs = scipy.sparse.csr_matrix((ones, (users, items)), shape=shape)
    degrees = np.maximum(np.asarray(pairs.sum(1)).ravel(), 1)
    met = (pairs.T @ scipy.sparse.diags_array(1 / degrees) @ pairs).tocoo()
    total = np.bincount(met.row, met.data, shape[1])  # = the number of an item's users
    data = np.log(met.data * total.sum() / (total[met.row] * total[met.col]))
    kept = data > 0
    where = met.row[kept], met.col[kept]
    matrix = scipy.sparse.csr_matrix((data[kept], where), shape=met.shape)
    start = np.random.default_rng(0).normal(size=shape[1])  # for repeatability
    left, values, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
    return np.ascontiguousarray(left * np.sqrt(values), np.float32)


def in_length(table: np.ndarray) -> np.ndarray:
    """The rows, but for zeros, in one length."""
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    scaled = LENGTH * table / np.maximum(norms, 1e-6)
    return np.where(norms > 1e-6, scaled, 0.0).astype(np.float32)
