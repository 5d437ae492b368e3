"""A training step of each phase, pure: (state, batch, graph) -> (state, losses)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from create_jax import optim, parallel
from create_jax.models import create
from create_jax.models.propagation import Rows
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


def init(model: create.Model, tx, seed: int) -> TrainState:
    params = create.init(model, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, optim.init(tx, params))


def total_loss(
    model: create.Model,
    phase: Phase,
    params,
    batch: StepBatch,
    graph,
    key,
    axis_name=None,
):
    """L and its parts for one batch, split over the devices of `axis_name`.

    Returns:
      (L, {"local", "global", "align"}), equal on every device.
    """
    parts = {}
    vectors = None
    if uses_graph(model, phase):
        vectors = create.graph_vectors(model, params, graph, axis_name)
    if phase.local:
        propagated = vectors.items if vectors is not None else None
        source, output = create.item_vectors(model, params, propagated)
        sequences = batch.sequences
        view = create.training_view(model, sequences)
        states = create.encode(model, params, source, view, train=True, key=key)
        parts["local"] = create.local_loss(
            model, states, output, sequences, key, axis_name
        )
        if phase.w_align:
            if model.objective == "masked":
                states, sequences = create.masked_states(
                    model, params, source, sequences, view, states, key
                )
            if batch.views is None:
                parts["align"] = create.alignment_loss(
                    model, params, states, vectors, sequences, axis_name
                )
            else:
                parts["align"] = create.views_loss(
                    model,
                    params,
                    source,
                    states,
                    sequences,
                    batch.views,
                    key,
                    axis_name,
                )
    if phase.w_global:
        parts["global"] = create.global_loss(
            model, params, vectors, batch.edges, graph, axis_name
        )
    weights = {"local": phase.local, "global": phase.w_global, "align": phase.w_align}
    return sum(weights[name] * value for name, value in parts.items()), parts


def uses_graph(model: create.Model, phase: Phase) -> bool:
    """Whether a phase reads, and so trains, the graph's vectors."""
    propagates = "propagated" in (model.input_items, model.output_items)
    wanted = phase.w_global > 0 or phase.w_align > 0 or propagates
    return model.graph is not None and wanted


def groups_of(model: create.Model, phase: Phase) -> list[str]:
    """The parameter groups a phase trains, where the model has them."""
    groups = ["item_table"]
    if phase.local:
        groups.append("sequence")
    if uses_graph(model, phase):
        groups += ["user_table", "graph"]
    if phase.w_align and model.align["projector_dims"]:
        groups.append("projectors")
    return groups


def train_step(model, phase, tx, seed, axis_name, state, batch, graph):
    """One step on one device of `axis_name`; dropout is a function of (seed, step)."""
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))

    def loss(params):
        return total_loss(model, phase, params, batch, graph, key, axis_name)

    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    groups = [group for group in groups_of(model, phase) if group in grads]
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
