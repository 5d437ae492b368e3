"""A training step of each phase, pure: (state, batch, graph) -> (state, losses)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from create_jax import optim, parallel
from create_jax.models.propagation import Rows
from create_jax.models.system import System
from create_jax.parallel import DATA


class TrainState(NamedTuple):
    """Arrays only. step: [] int32, steps taken in all phases."""

    step: jax.Array
    params: dict
    opt_state: dict


class Phase(NamedTuple):
    """A stretch of training: which losses count, for how many epochs.

    Weights of L = local * L_local + w_global * L_global + w_align * L_align (CREATE,
    eq. 4). A weight of 0 leaves its loss out of the program altogether.
    """

    name: str
    epochs: int
    local: float
    w_global: float
    w_align: float


class StepBatch(NamedTuple):
    """What one step sees: packed sequences, pairs of the graph, or both.

    views: for each sequence a second one to align with, where no graph is.
    """

    sequences: tuple | None
    edges: tuple | None
    views: tuple | None = None


def init(model: System, tx, seed: int) -> TrainState:
    params = model.init(seed)
    return TrainState(jnp.zeros((), jnp.int32), params, optim.init(tx, params))


def train_step(model, phase, tx, seed, axis_name, state, batch, graph):
    """One step on one device of `axis_name`; dropout is a function of (seed, step)."""
    key = jax.random.fold_in(jax.random.key(seed, impl=model.random), state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))

    def loss(params):
        with jax.default_matmul_precision(model.precision):
            return model.loss(phase, params, batch, graph, key, axis_name)

    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    groups = [g for g in model.trained_groups(phase) if g in grads]
    grads = {group: grads[group] for group in groups}
    if axis_name is not None:
        grads = lax.pmean(grads, axis_name)
    params, opt_state = optim.update(tx, grads, state.opt_state, state.params, groups)
    sums = {f"loss/{name}": part for name, part in parts.items()}
    squares = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    sums |= {"loss": value, "grad_norm": jnp.sqrt(squares)}
    return TrainState(state.step + 1, params, opt_state), sums


def compile_phase(model, phase, tx, seed, mesh, batch: StepBatch, graph):
    """(state, chunk of batches [S, ...], graph) -> (state, losses [S]): one dispatch.

    Args:
      batch, graph: examples, for their structure.
    """

    def run(state, batches, graph):
        def body(state, batch):
            return train_step(model, phase, tx, seed, DATA, state, batch, graph)

        return lax.scan(body, state, batches)

    in_specs = (P(), batch_specs(batch), graph_specs(graph))
    return parallel.compile_step(run, mesh, in_specs, (P(), P()), donate=(0,))


def batch_specs(batch: StepBatch) -> StepBatch:
    """Stacked batches are split over devices along their second axis; what all pairs of
    a step share ([S, 1, ...], negatives of UltraGCN) is everywhere."""
    return jax.tree.map(lambda x: P() if x.shape[1] == 1 else P(None, DATA), batch)


def graph_specs(graph):
    """Terms of a propagation are split over devices, everything else is everywhere."""

    def specs(x):
        split = P(DATA) if isinstance(x, Rows) else P()
        return jax.tree.map(lambda _: split, x)

    return jax.tree.map(specs, graph, is_leaf=lambda x: isinstance(x, Rows))


def first_bad_step(losses: dict[str, np.ndarray]) -> tuple[int, str] | None:
    """(index, name) of the first value that is not finite, or None."""
    bad = {name: ~np.isfinite(values) for name, values in losses.items()}
    steps = np.flatnonzero(np.any(list(bad.values()), axis=0))
    if not len(steps):
        return None
    first = int(steps[0])
    names = [name for name in sorted(bad) if bad[name][first]]
    return first, ", ".join(names)
