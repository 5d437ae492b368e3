"""One step is one step, on however many devices, and a run can stop in between."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from conftest import KNOWS_EMITTERS
from create_jax.configs.common import get_config
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from create_jax import build, feeds, optim, parallel, steps
from create_jax.checkpoint import Checkpoints
from create_jax.data import packing
from create_jax.data.interactions import Interactions
from create_jax.parallel import DATA
from create_jax.steps import Phase

USERS, ITEMS, SHARDS = 30, 15, 8
JOINT = Phase("joint", 1, local=1.0, w_global=0.5, w_align=0.7)


def make_log():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 9, USERS)
    counts[[4, 11]] = 1  # nothing to learn from: 28 sequences
    return Interactions(
        np.repeat(np.arange(USERS, dtype=np.int32), counts),
        rng.integers(1, ITEMS + 1, counts.sum()).astype(np.int32),
        np.arange(counts.sum()),
        pl.Series([str(u) for u in range(USERS)]),
        pl.Series([str(i) for i in range(ITEMS)]),
    )


LOG = make_log()


def make_config(method="create", encoder="ultragcn", dropout=0.0, **changes):
    config = get_config(method)
    config.update_from_flattened_dict(
        {
            "model.dim": 8,
            "seq.blocks": 1,
            "seq.heads": 2,
            "seq.dropout": dropout,
            "seq.max_len": 6,
            "graph.encoder": encoder,
            "graph.batch_size": 24,
            "graph.lightgcn.layers": 2,
            "graph.ultragcn.negatives": 5,
            "graph.ultragcn.neighbours": 3,
            "train.batch": USERS,
            "train.chunk": 10,
        }
        | changes
    )
    build.check(config)
    return config


def prepare(config, phase, shards):
    """(model, feed, graph) of a phase."""
    model = build.make_model(config, USERS, ITEMS)
    rows, pairs, graph = feeds.make_graph(config, model, LOG, shards)
    feed = feeds.Feed(config, model, phase, LOG, rows, pairs, shards)
    return model, feed, graph


def mesh_of(n):
    devices = jax.devices()[:n]
    return jax.make_mesh((n,), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def random_state(model, tx, seed=1):
    """Large weights: at the usual 0.02 the transformer hardly does anything."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: steps.init(model, tx, 0))
    params = jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes.params
    )
    return steps.TrainState(jnp.int32(0), params, optim.init(tx, params))


# --- devices --------------------------------------------------------------------------

# An "optimizer" whose state is the last gradient, so that a step can be asked for it.
KEEP = optax.trace(decay=0.0)


def gradients(state):
    return {group: kept.trace for group, kept in state.opt_state.items()}


def in_float64(tree):
    """Single-precision arrays as double ones."""

    def widen(x):
        x = np.asarray(x)
        return jnp.asarray(x, jnp.float64 if x.dtype == np.float32 else x.dtype)

    return jax.tree.map(widen, tree)


class Case:
    """A joint step over eight shards with uneven numbers of tokens and of pairs, in
    double precision: the mathematics is equal, the order of sums is not."""

    phase = JOINT

    def __init__(self, encoder, **changes):
        config = self.config = make_config(encoder=encoder, **changes)
        self.model, feed, self.graph = prepare(config, JOINT, SHARDS)
        self.whole_graph = feeds.make_graph(config, self.model, LOG, 1)[2]
        stacked = feed.batch(feed.plan(0), 0)
        batch = jax.tree.map(lambda x: x[0], stacked)
        weights = np.ones(24, np.float32)
        weights[[0, 1, 2, 7, 13, 22, 23]] = 0  # all three pairs of shard 0
        targets = batch.sequences.targets.copy()
        targets[targets.shape[0] // SHARDS * 2 - 1] = 0  # shards pack too evenly
        sequences = batch.sequences._replace(targets=targets)
        edges = batch.edges._replace(weights=weights)
        self.batch = in_float64(steps.StepBatch(sequences, edges))
        self.graph, self.whole_graph = in_float64((self.graph, self.whole_graph))
        tokens = (targets > 0).reshape(SHARDS, -1).sum(1)
        users = sequences.weights.reshape(SHARDS, -1).sum(1)
        assert tokens.max() - tokens.min() > 3 and users.min() < users.max()
        self.state = in_float64(random_state(self.model, KEEP))

    def step(self, axis_name):
        return partial(steps.train_step, self.model, self.phase, KEEP, 0, axis_name)

    def on_one_device(self):
        """The whole batch at once: `last` counts over the rows of all shards."""
        sequences = self.batch.sequences
        slots = sequences.items.size // SHARDS
        last = sequences.last.reshape(SHARDS, -1) + slots * np.arange(SHARDS)[:, None]
        whole = self.batch._replace(sequences=sequences._replace(last=last.ravel()))
        state, sums = jax.jit(self.step(None))(self.state, whole, self.whole_graph)
        return sums, gradients(state)

    def per_device(self):
        """Arguments with a leading axis of devices, and their in_axes."""
        parts = {DATA: lambda x: x.reshape(SHARDS, -1, *x.shape[1:]), None: lambda x: x}

        def split(tree, specs):
            # specs of stacked batches: the axis after the steps is the devices'.
            names = jax.tree.map(lambda s: s[-1] if len(s) else None, specs)
            flat, structure = jax.tree.flatten(tree)
            axes = structure.flatten_up_to(names)
            leaves = [parts[axis](x) for x, axis in zip(flat, axes, strict=True)]
            in_axes = [None if axis is None else 0 for axis in axes]
            return structure.unflatten(leaves), structure.unflatten(in_axes)

        stacked = jax.tree.map(lambda x: x[None], self.batch)
        batch, batch_axes = split(self.batch, steps.batch_specs(stacked))
        graph, graph_axes = split(self.graph, steps.graph_specs(self.graph))
        return (self.state, batch, graph), (None, batch_axes, graph_axes)


def same(found, expected, groups=("item_table", "user_table", "sequence")):
    """Losses and gradients to 1e-10; `found` may have a leading axis of devices."""

    def close(x, y):
        assert x.dtype == y.dtype == jnp.float64
        expected = np.broadcast_to(y, x.shape)
        np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-10)

    sums, slopes = found
    assert set(sums) >= {"loss", "loss/local", "loss/global", "loss/align"}
    assert set(slopes) == set(expected[1]) == set(groups)
    jax.tree.map(close, sums, expected[0])
    jax.tree.map(close, slopes, expected[1])
    # No gradient is compared for nothing, but for the keys' bias: softmax ignores it.
    for path, slope in jax.tree_util.tree_leaves_with_path(expected[1]):
        name = jax.tree_util.keystr(path)
        assert np.abs(slope).max() > 1e-4 or name.endswith("['key']['bias']")


def by_vmap(case):
    arguments, axes = case.per_device()
    mapped = jax.vmap(case.step(DATA), in_axes=axes, axis_name=DATA)
    return jax.jit(mapped)(*arguments)


def by_pmap(case):
    arguments, axes = case.per_device()
    return jax.pmap(case.step(DATA), axis_name=DATA, in_axes=axes)(*arguments)


def by_compiled_phase(case, parts=1):
    """As training does it: shard_map under jit, over the mesh of all devices.

    Args:
      parts: devices that share the rows of tables.
    """
    mesh = parallel.make_mesh(parts)
    assert mesh.size == SHARDS
    axes, shards = parallel.batch_axes(mesh), mesh.shape[DATA]
    graph = case.graph
    if parts > 1:
        given = case.config, case.model, LOG, shards, parts
        graph = in_float64(feeds.make_graph(*given)[2])
    stacked = jax.tree.map(lambda x: np.asarray(x)[None], case.batch)
    batch = parallel.place(mesh, stacked, steps.batch_specs(stacked, axes))
    graph = parallel.place(mesh, graph, steps.graph_specs(graph, axes))
    run = steps.compile_phase(case.model, case.phase, KEEP, 0, mesh, batch, graph)
    params = steps.pad_tables(jax.tree.map(jnp.copy, case.state.params), mesh)
    state = steps.TrainState(jnp.int32(0), params, optim.init(KEEP, params))
    state = parallel.place(mesh, state, steps.state_specs(state, axes))
    assert state.params["item_table"].addressable_shards[0].data.size * parts == (
        params["item_table"].size
    )
    state, sums, wished = run(state, batch, graph, parallel.wishes(mesh)(2))
    assert int(wished) == 2
    assert int(state.step) == 1
    assert all(values.shape == (1,) for values in sums.values())
    return without_filling(state, case.state), sums


def without_filling(state, like):
    """A state with the rows that `like` has; more of them are zeros."""

    def cut(x, real):
        if x.ndim:
            assert not np.asarray(x[len(real) :]).any()
        return x[: len(real)] if x.ndim else x

    return jax.tree.map(cut, state, like)


LIGHTGCN = pytest.param("lightgcn", marks=pytest.mark.services)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("encoder", ["ultragcn", LIGHTGCN])
def test_vmap_pmap_and_eight_devices_give_the_step_of_one_device(encoder):
    case = Case(encoder)
    expected = case.on_one_device()
    by_rows = partial(by_compiled_phase, parts=4)
    for split in (by_vmap, by_pmap, by_compiled_phase, by_rows):
        state, sums = split(case)
        same((sums, gradients(state)), expected)


@pytest.mark.usefixtures("double_precision")
def test_the_other_losses_are_split_correctly_too():
    """InfoNCE over all positions, per-pair negatives, sums instead of means."""
    case = Case(
        "ultragcn",
        **{
            "align.kind": "infonce",
            "align.positions": "all",
            "graph.reduce": "sum",
            "graph.ultragcn.shared_negatives": False,
        },
    )
    assert case.batch.edges.negatives.shape == (24, 5)
    state, sums = by_vmap(case)
    same((sums, gradients(state)), case.on_one_device())


def test_what_is_shared_by_a_step_is_not_split():
    def specs(encoder, shared):
        changes = {"graph.ultragcn.shared_negatives": shared}
        model, feed, graph = prepare(
            make_config(encoder=encoder, **changes), JOINT, SHARDS
        )
        batch = feed.batch(feed.plan(0), 0)
        return steps.batch_specs(batch), steps.graph_specs(graph)

    split, whole = P(None, DATA), P()
    batch, graph = specs("ultragcn", True)
    assert batch.edges == (split, split, whole, split)
    assert set(jax.tree.leaves(graph)) == {whole}
    assert set(jax.tree.leaves(batch.sequences)) == {split}
    batch, _ = specs("ultragcn", False)
    assert batch.edges == (split, split, split, split)
    batch, graph = specs("lightgcn", True)
    assert batch.edges == (split, split, split, split)
    assert set(jax.tree.leaves(graph)) == {P(DATA)}


# --- stretches of training ------------------------------------------------------------

AS_USERS = {"xla_cpu_use_fusion_emitters": True} if KNOWS_EMITTERS else {}


def make_run(config, phase, mesh, options=None):
    """(first states by seed, one dispatch (state, epoch, chunk), the feed behind it).

    Groups that two models share start the same, as in `Create.init`.

    Args:
      options: of the compiler, where they are not this suite's.
    """
    model, feed, graph = prepare(config, phase, mesh.size)
    tx = optim.make(**config.optim.to_dict())
    graph = parallel.place(mesh, graph, steps.graph_specs(graph))

    def batch(epoch, chunk):
        found = feed.batch(feed.plan(epoch), chunk)
        return parallel.place(mesh, found, steps.batch_specs(found))

    def fresh(seed=1):
        return parallel.place(mesh, random_state(model, tx, seed))

    first = batch(0, 0)
    run = steps.compile_phase(model, phase, tx, config.seed, mesh, first, graph)
    wish = parallel.wishes(mesh)(0)
    run = run.lower(fresh(), first, graph, wish).compile(options)

    def dispatch(state, epoch, chunk):
        return run(state, batch(epoch, chunk), graph, wish)[:2]

    return fresh, dispatch, feed


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def differs(found, other):
    return all(
        bool((x != y).any())
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.usefixtures("as_users_compile")
def test_create_without_graph_weights_is_sasrec_bit_for_bit():
    ends = {}
    for method in ("sasrec", "create"):
        config = make_config(
            method,
            dropout=0.3,
            **{
                "loss.w_global": 0.0,
                "loss.w_bt": 0.0,
                "warmup.epochs": 0,
                "train.batch": 6,
                "train.chunk": 5,
            },
        )
        (phase,) = build.make_phases(config)
        fresh, run, feed = make_run(config, phase, mesh_of(1), AS_USERS)
        assert feed.steps == 5
        state, start = fresh(), jax.device_get(fresh().params)
        for epoch in range(10):
            state, sums = run(state, epoch, 0)
        assert int(state.step) == 50
        assert set(sums) == {"loss", "loss/local", "grad_norm"}
        ends[method] = jax.device_get(state)
        assert differs(ends[method].params["sequence"], start["sequence"])
    joint, alone = ends["create"], ends["sasrec"]
    assert set(joint.params) - set(alone.params) == {"user_table"}
    for group in ("item_table", "sequence"):
        equal(joint.params[group], alone.params[group])
        equal(joint.opt_state[group], alone.opt_state[group])


@pytest.mark.services  # test_resume.py says the same of whole runs
@pytest.mark.usefixtures("as_users_compile")
def test_sixteen_steps_are_eight_a_restart_and_eight_bit_for_bit(tmp_path):
    changes = {"train.batch": 3, "train.chunk": 5}
    config = make_config(encoder="lightgcn", dropout=0.3, **changes)
    fresh, run, feed = make_run(config, JOINT, parallel.make_mesh(), AS_USERS)
    assert (feed.steps, feed.chunks) == (8, 2)

    def eight(state, epoch):
        for chunk in range(2):
            state, sums = run(state, epoch, chunk)
        return state, sums

    state, _ = eight(fresh(), 0)
    checkpoints = Checkpoints(tmp_path / "saved")
    checkpoints.save(8, state, {"epoch": 1, "best_step": 0})
    checkpoints.wait()
    through, sums = jax.device_get(eight(state, 1))
    checkpoints.close()

    again = Checkpoints(tmp_path / "saved")
    state, progress = again.restore_latest(fresh(seed=2))
    again.close()
    assert progress == {"epoch": 1, "best_step": 0}
    assert int(state.step) == 8
    stopped, sums_after = jax.device_get(eight(state, 1))
    assert int(stopped.step) == 16
    equal(stopped, through)
    equal(sums_after, sums)


@pytest.mark.parametrize("encoder", ["ultragcn", "lightgcn"])
def test_warm_up_leaves_the_transformer_as_it_was(encoder):
    config = make_config(encoder=encoder, **{"warmup.epochs": 1})
    warmup, joint = build.make_phases(config)
    assert (warmup.name, warmup.epochs) == ("warmup", 1)
    assert (warmup.local, warmup.w_align) == (0, 0)
    assert (joint.local, joint.w_global, joint.w_align) == (1, 0.1, 0.2)
    fresh, run, feed = make_run(config, warmup, mesh_of(1))
    start = jax.device_get(fresh())
    state, sums = run(fresh(), 0, 0)
    state = jax.device_get(state)
    assert int(state.step) == feed.chunk_steps
    assert set(sums) == {"loss", "loss/global", "grad_norm"}
    equal(state.params["sequence"], start.params["sequence"])
    # Its optimizer has not started either: bias correction begins at the switch.
    equal(state.opt_state["sequence"], start.opt_state["sequence"])
    assert state.opt_state["item_table"][0].count == feed.chunk_steps
    for table in ("user_table", "item_table"):
        assert differs(state.params[table], start.params[table])


def test_a_step_draws_its_own_dropout():
    config = make_config("sasrec", dropout=0.5)
    (phase,) = build.make_phases(config)
    model, feed, graph = prepare(config, phase, 1)
    batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
    state = random_state(model, KEEP)

    @jax.jit
    def loss(step, seed):
        now = state._replace(step=step)
        _, sums = steps.train_step(model, phase, KEEP, seed, None, now, batch, graph)
        return sums["loss"]

    assert loss(0, 0) == loss(0, 0)
    assert loss(0, 0) != loss(1, 0)
    assert loss(0, 0) != loss(0, 1)


def test_the_first_bad_step_is_named():
    good = np.array([1.0, 2.0, 3.0, 4.0])
    late, early = good.copy(), good.copy()
    late[3], early[2] = np.inf, np.nan
    assert steps.first_bad_step({"loss": good}) is None
    assert steps.first_bad_step({"loss": late, "grad_norm": good}) == (3, "loss")
    found = steps.first_bad_step({"loss": late, "b": early, "a": early})
    assert found == (2, "a, b")


@pytest.mark.parametrize("method", ["sasrec", "bert4rec"])
def test_blocks_train_each_user_once_from_any_dispatch_on(method, monkeypatch):
    config = make_config(method, "none", **{"train.batch": 4, "train.chunk": 1})
    (phase,) = build.make_phases(config)
    whole = prepare(config, phase, 2)[1]
    monkeypatch.setattr(packing, "BLOCK", 10)
    monkeypatch.setattr(packing, "RUN", 4)
    feed = prepare(config, phase, 2)[1]
    assert (whole.blocks, feed.blocks) == (1, 3) and feed.chunks == 9
    seen, plan = [], feed.plan(5)
    for chunk in range(feed.chunks):
        batch = feed.batch(plan, chunk)
        again = feed.batch(feed.plan(5), chunk)  # as after a kill
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, batch, again)))
        seen += batch.sequences.users[batch.sequences.weights > 0].tolist()
    assert sorted(seen) == whole.sequences.owners.tolist()
