"""A training step of each phase, pure: (state, batch, graph) -> (state, losses)."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from create_jax import optim, parallel, tables
from create_jax.models.propagation import Rows
from create_jax.models.system import System
from create_jax.parallel import ALL, DATA, MODEL

# Groups of parameters that are tables of users or items, by rows.
TABLES = "item_table", "user_table"


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


def start(model: System, tx, seed: int, mesh) -> TrainState:
    """The first state on the devices; where tables are split none is ever whole."""
    if parallel.parts_of_tables(mesh) == 1:
        return parallel.place(mesh, init(model, tx, seed))

    def make():
        return pad_tables(model.init(seed), mesh)

    specs = group_specs(jax.eval_shape(make), ALL)
    params = jax.jit(make, out_shardings=parallel.shardings(mesh, specs))()
    # The other groups one by one, as above: in one program they round otherwise.
    others = dataclasses.replace(model, n_users=1, n_items=1).init(seed)
    others = {k: v for k, v in others.items() if k not in (*TABLES, "token")}
    params |= parallel.place(mesh, others)
    state = TrainState(jnp.zeros((), jnp.int32), params, {})
    return restart(tx, state._replace(step=parallel.place(mesh, state.step)), mesh)


def restart(tx, state: TrainState, mesh) -> TrainState:
    """The same parameters under a fresh optimizer."""
    make = partial(optim.init, tx)
    fresh = jax.eval_shape(make, state.params)
    specs = group_specs(fresh, parallel.batch_axes(mesh))
    make = jax.jit(make, out_shardings=parallel.shardings(mesh, specs))
    return state._replace(opt_state=make(state.params))


def pad_tables(params: dict, mesh) -> dict:
    """Parameters whose tables are filled up to a multiple of their parts."""
    parts = parallel.parts_of_tables(mesh)
    return {
        group: tables.padded(values, parts) if group in TABLES else values
        for group, values in params.items()
    }


def real_rows(model: System) -> dict[str, int]:
    """How many rows the tables have where they may be filled up, by group."""
    sizes = dict(zip(TABLES, (model.n_rows, model.n_users), strict=True))
    return sizes if model.splits_tables else {}


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
        grads = _mean_over_devices(grads, axis_name)
    params, opt_state = optim.update(tx, grads, state.opt_state, state.params, groups)
    sums = {f"loss/{name}": part for name, part in parts.items()}
    sums |= {"loss": value, "grad_norm": jnp.sqrt(_squares(grads, axis_name))}
    return TrainState(state.step + 1, params, opt_state), sums


def _mean_over_devices(grads: dict, axis_name) -> dict:
    """Every device has the gradient of the whole loss by its own copies: their mean is
    that by a parameter. A row of a split table has copies along `data` only."""
    if not tables.is_split(axis_name):
        return lax.pmean(grads, axis_name)
    n = lax.axis_size(axis_name)
    return {
        group: jax.tree.map(lambda g: g / n, lax.psum(own, _copies(group, axis_name)))
        for group, own in grads.items()
    }


def _copies(group: str, axis_name):
    return tables.copies_over(axis_name) if group in TABLES else axis_name


def _squares(grads: dict, axis_name) -> jax.Array:
    """The sum of squares of all gradients."""
    if not tables.is_split(axis_name):
        return sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    split = {group: own for group, own in grads.items() if group in TABLES}
    others = {group: own for group, own in grads.items() if group not in TABLES}
    return tables.group_sum(_squares(split, None), axis_name) + _squares(others, None)


def compile_phase(model, phase, tx, seed, mesh, batch: StepBatch, graph):
    """(state, chunk of batches [S, ...], graph, wishes) -> (state, losses [S], the
    greatest wish): one dispatch.

    What a process wishes (`parallel.wishes`) rides on it: the answer comes to all with
    the losses, which are awaited anyway.

    Args:
      batch, graph: examples, for their structure.
    """

    axes = parallel.batch_axes(mesh)

    def run(state, batches, graph, wish):
        def body(state, batch):
            return train_step(model, phase, tx, seed, axes, state, batch, graph)

        state, losses = lax.scan(body, state, batches)
        return state, losses, lax.pmax(wish[0], axes)

    state = P()
    if tables.is_split(axes):
        state = state_specs(jax.eval_shape(partial(init, model, tx, seed)), axes)
    in_specs = (state, batch_specs(batch, axes), graph_specs(graph, axes), P(axes))
    out_specs = (state, P(), P())
    return parallel.compile_step(run, mesh, in_specs, out_specs, donate=(0,))


def batch_specs(batch: StepBatch, axes=DATA) -> StepBatch:
    """Stacked batches are split over devices along their second axis; what all pairs of
    a step share ([S, 1, ...], negatives of UltraGCN) is everywhere."""
    return jax.tree.map(lambda x: P() if x.shape[1] == 1 else P(None, axes), batch)


def graph_specs(graph, axes=DATA):
    """Terms of a propagation are split over `data`; everything else is everywhere, or
    by rows as tables are."""
    whole = P(MODEL) if tables.is_split(axes) else P()

    def specs(x):
        split = P(DATA) if isinstance(x, Rows) else whole
        return jax.tree.map(lambda _: split, x)

    return jax.tree.map(specs, graph, is_leaf=lambda x: isinstance(x, Rows))


def state_specs(state: TrainState, axes=DATA) -> TrainState:
    return TrainState(
        P(), group_specs(state.params, axes), group_specs(state.opt_state, axes)
    )


def group_specs(groups: dict, axes=DATA) -> dict:
    """Of parameters, or what an optimizer keeps of them: tables are by rows where they
    are split, everything else is everywhere."""
    split = TABLES if tables.is_split(axes) else ()

    def specs(group, x):
        return P(MODEL) if group in split and x.ndim else P()

    return {
        group: jax.tree.map(partial(specs, group), values)
        for group, values in groups.items()
    }


def first_bad_step(losses: dict[str, np.ndarray]) -> tuple[int, str] | None:
    """(index, name) of the first value that is not finite, or None."""
    bad = {name: ~np.isfinite(values) for name, values in losses.items()}
    steps = np.flatnonzero(np.any(list(bad.values()), axis=0))
    if not len(steps):
        return None
    first = int(steps[0])
    names = [name for name in sorted(bad) if bad[name][first]]
    return first, ", ".join(names)
