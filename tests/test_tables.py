"""Tables by rows over `model` give what whole tables give."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_evaluate import ITEMS, by_numpy, make_holdout, successive
from test_steps import SHARDS, Case, by_compiled_phase, gradients, make_config

from create_jax import (
    build,
    checkpoint,
    evaluate,
    losses,
    metrics,
    optim,
    parallel,
    steps,
    tables,
)
from create_jax.checkpoint import Checkpoints
from create_jax.errors import InputError
from create_jax.parallel import ALL, DATA

PARTS = 4


def test_tables_are_filled_up_to_a_multiple():
    table = np.arange(10).reshape(5, 2) + 1
    filled = tables.padded(table, 4)
    assert filled.shape == (8, 2) and not filled[5:].any()
    np.testing.assert_array_equal(filled[:5], table)
    assert tables.padded(table, 5) is table


# --- ranking --------------------------------------------------------------------------


def small_numbers(n, seed):
    """Vectors whose products are exact and often equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1, 2, (n, 4)).astype(np.float32)


def by_users(axis_name):
    def score(params, graph):
        def of(queries):
            users = queries.histories.users
            users = tables.look_up(params["user_table"], users, axis_name)
            return tables.of_group(users, axis_name) @ params["item_table"].T

        return of

    return score


@pytest.mark.parametrize("holdout", [make_holdout(), successive(rows=200)])
def test_split_tables_rank_as_whole_ones(holdout):
    """Ranks, ties, lists and coverage; of the second, queries share a history."""
    places = np.r_[0, 1 + np.random.default_rng(5).permutation(ITEMS)]
    holdout = holdout._replace(places=places.astype(np.int32))
    params = {
        "user_table": small_numbers(holdout.users.max() + 1, 1),
        "item_table": small_numbers(ITEMS + 1, 2),
    }
    found = []
    for parts in (1, PARTS):
        mesh = parallel.make_mesh(parts)
        axes = parallel.batch_axes(mesh)
        placed = steps.pad_tables(params, mesh)
        placed = parallel.place(mesh, placed, steps.group_specs(placed, axes))
        evaluator = evaluate.Evaluator(
            holdout,
            by_users(axes),
            mesh,
            ks=(3, 20),
            max_len=4,
            filter_seen=True,
            keep_lists=True,
            batch=120,
            uncut=metrics.UNCUT,
        )
        found.append(evaluator.run(placed, ()))
    whole, split = found
    assert whole.tied.any() and len(np.unique(whole.ranks)) > 5
    scores = params["user_table"][holdout.users] @ params["item_table"].T
    for name, value in by_numpy(holdout, scores, filter_seen=True).items():
        for ranking in found:
            np.testing.assert_allclose(ranking.metrics.pop(name), value, rtol=1e-5)
    assert whole.metrics == split.metrics
    for name in ("ranks", "tied", "top"):
        np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))


# --- losses ---------------------------------------------------------------------------

KINDS = {
    "ce": {"whole_items": 3, "item_chunk": 2, "token_chunk": 3},
    "gbce": {"negatives": 4, "gbce_t": 0.5, "shared_negatives": True},
}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("kind", KINDS)
def test_next_item_losses_of_split_tables(kind):
    rng, n_items = np.random.default_rng(3), 13  # of 8 parts one has no item
    table = tables.padded(rng.normal(size=(n_items + 1, 4)), SHARDS)
    states = rng.normal(size=(SHARDS, 2 * 5, 4))
    targets = rng.integers(0, n_items + 1, (SHARDS, 2, 5)).astype(np.int32)
    targets[:2] = 0  # two devices have nothing to learn
    keys = jax.random.split(jax.random.key(0), SHARDS)
    loss = partial(losses.NEXT_ITEM[kind], n_items=n_items, **KINDS[kind])

    def slopes(axes):
        of = jax.value_and_grad(partial(loss, axis_name=axes), argnums=(0, 1))
        return lambda table, *own: of(own[0], table, *own[1:])

    given = states, targets, keys
    mapped = jax.vmap(slopes(DATA), in_axes=(None, 0, 0, 0), axis_name=DATA)
    whole, (d_states, d_table) = jax.jit(mapped)(table, *given)
    mapped = jax.vmap(slopes(ALL), axis_name="model")
    mapped = jax.vmap(mapped, in_axes=(None, 0, 0, 0), axis_name=DATA)
    parts = [x.reshape(2, PARTS, *x.shape[1:]) for x in given]
    rows = table.reshape(PARTS, -1, 4)
    split, (d_states_by_rows, d_rows) = jax.jit(mapped)(rows, *parts)
    same = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    assert np.abs(d_table).max() > 1e-3
    same(split.ravel(), whole)
    same(d_states_by_rows.reshape(d_states.shape), d_states)
    same(d_rows.sum(0).reshape(table.shape), d_table.sum(0))


# --- steps ----------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("encoder", ["ultragcn", "lightgcn"])
def test_every_mesh_gives_the_same_steps(encoder):
    """The joint step with dropout, and that of a warm-up, on 8x1, 4x2, 2x4 and 1x8."""
    for phase in ("joint", "warmup"):
        same_on_every_mesh(encoder, phase)


@pytest.mark.services
@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("kind", ["bce", "gsau"])
def test_the_other_losses_know_of_split_tables_too(kind):
    same_on_every_mesh("ultragcn", "joint", (4,), **{"loss.local": kind})


def same_on_every_mesh(encoder, phase, meshes=(2, 4, 8), **changes):
    changes |= {"seq.dropout": 0.3, "warmup.epochs": 1, "loss.negatives": 5}
    case = Case(encoder, **changes)
    if phase == "warmup":
        case.phase = build.make_phases(case.config)[0]
    expected, sums = by_compiled_phase(case)
    assert np.abs(gradients(expected)["user_table"]).max() > 1e-4
    for parts in meshes:
        found = by_compiled_phase(case, parts)
        close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
        jax.tree.map(close, found, (expected, sums))


def test_a_first_state_is_the_same_on_any_mesh():
    config = make_config("ultragcn")  # what else there is, is made as ever
    model, tx = (
        build.make_model(config, 30, 15),
        steps.optim.make(lr=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip=0.0),
    )
    whole = jax.device_get(steps.start(model, tx, 0, parallel.make_mesh()))
    state = steps.start(model, tx, 0, parallel.make_mesh(PARTS))
    table = state.params["user_table"]
    assert table.sharding.spec == P("model") and len(table) == 32
    assert state.opt_state["user_table"][0].mu.sharding.spec == P("model")

    def same(x, y):
        x = np.asarray(x)
        np.testing.assert_array_equal(x[: len(y)] if y.ndim else x, y)

    jax.tree.map(same, state, whole)
    moved = jax.tree.map(lambda x: x + 1, state)
    again = steps.restart(tx, moved, parallel.make_mesh(PARTS))
    jax.tree.map(same, again.opt_state, whole.opt_state)
    assert again.params is moved.params


# --- what cannot ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, changes, reason",
    [
        ("sasrec", {"mesh.model": 3}, "a divisor of the 8 devices"),
        ("sasrec", {"loss.local": "sce"}, "loss.local=sce needs whole tables"),
        ("sasrec", {"optim.clip": 1.0}, "optim.clip=1.0 needs whole tables"),
        ("sasrec", {"loss.local": "plugins.functions.margin"}, "plugins.functions"),
        ("mrgsrec", {"graph.encoder": "lightgcn"}, "method=mrgsrec needs whole tables"),
        ("signed", {"graph.encoder": "signed"}, "graph.encoder=signed needs whole"),
        ("create", {"graph.encoder": "plugins.shifted"}, "graph.encoder=shifted"),
        ("lightgcn", {"graph.lightgcn.normalise": True}, "lightgcn.normalise=True"),
        ("lightgcn", {"model.dim": 6}, "a divisor of model.dim = 6, with lightgcn"),
    ],
)
def test_what_needs_whole_tables_is_refused(method, changes, reason):
    encoder = "lightgcn" if method == "lightgcn" else "ultragcn"
    with pytest.raises(InputError, match="config.mesh.model is .*" + reason) as raised:
        make_config(method, encoder, **{"mesh.model": PARTS} | changes)
    assert len(str(raised.value)) < 500


# --- checkpoints ----------------------------------------------------------------------


def test_a_checkpoint_of_any_mesh_is_read_on_any_other(tmp_path):
    config = make_config("ultragcn")
    model, tx = build.make_model(config, 30, 15), optim.make(**config.optim.to_dict())
    like = {m: steps.start(model, tx, 0, parallel.make_mesh(m)) for m in (1, 2, PARTS)}
    lengths = {m: len(x.params["user_table"]) for m, x in like.items()}
    assert lengths == {1: 30, 2: 30, PARTS: 32}

    def numbered(x, real):
        rows = np.arange(1, real.size + 1, dtype=x.dtype).reshape(real.shape)
        filled = tables.padded(rows, PARTS) if real.ndim else rows
        return jax.device_put(filled.reshape(x.shape), x.sharding)

    saved = jax.tree.map(numbered, like[PARTS], like[1])
    state, rules = saved, dict(rows=steps.real_rows(model))
    for n, m in enumerate((1, 2, PARTS)):  # each reads what the one before has saved
        kept = Checkpoints(tmp_path / str(n), **rules)
        kept.save(1, state, {"best_step": 0})
        kept.close()
        again = Checkpoints(tmp_path / str(n), **rules)
        state, _ = again.restore_latest(like[m])
        again.close()
        leaves = map(jax.tree.leaves, (state, like[m], saved))
        for found, wanted, expected in zip(*leaves, strict=True):
            assert found.sharding == wanted.sharding and found.shape == wanted.shape
            rows = slice(len(found)) if found.ndim else ...
            np.testing.assert_array_equal(found, np.asarray(expected)[rows])


def test_real_rows_are_not_cut(tmp_path):
    """Zeros behind them are; another number of real rows is of something else."""
    kept = Checkpoints(tmp_path)
    kept.save(1, {"t": jnp.ones((6, 2)), "u": jnp.ones(6)}, {"best_step": 0})
    kept.close()

    def other(rows, of_t, of_u=6):
        like = {"t": jnp.ones((of_t, 2)), "u": jnp.ones(of_u)}
        return checkpoint._other_form(tmp_path / "1" / "state", like, rows)

    assert other({"t": 5}, 5) is other({"t": 5}, 8) is other({"t": 6}, 8) is None
    assert other({"t": 7}, 8) == "t: found [6, 2], expected [7, 2]"
    assert other({}, 5) == "t: found [6, 2], expected [5, 2]"
    assert other({"t": 5}, 8, 5) == "u: found [6], expected [5]"
