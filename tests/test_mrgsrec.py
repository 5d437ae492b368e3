"""MRGSRec against a second writing: token, fusion, losses, devices, packing."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import test_encoders
import test_steps
from create_jax.configs.common import get_config
from jax.sharding import AxisType
from test_encoders import four_queries, slots_of
from test_models import in_float64, make_params, numpy_attention, numpy_norm

from create_jax import build, evaluate, feeds, losses, methods, optim, steps
from create_jax.data import packing
from create_jax.data.interactions import Interactions
from create_jax.errors import InputError
from create_jax.models.mrgsrec import MRGSRec
from create_jax.parallel import DATA
from create_jax.steps import Phase

USERS, ITEMS, LENGTH, WIDTH, HEADS, SHARDS = 30, 15, 7, 8, 2, 8
TOKEN = ITEMS + 1


def make_histories():
    """Of lengths 0 to 10; item 15 is nowhere, so the graph does not reach it."""
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 10, USERS)
    counts[[2, 4, 11, 17]] = 10, 1, 1, 0  # 27 users have something to learn from
    return [rng.integers(1, ITEMS, n).tolist() for n in counts]


HISTORIES = make_histories()
LEARNERS = [user for user, history in enumerate(HISTORIES) if len(history) > 1]


def make_log(histories):
    users = np.repeat(np.arange(USERS), [len(h) for h in histories])
    names = [pl.Series([str(n) for n in range(size)]) for size in (USERS, ITEMS)]
    items = np.concatenate(histories).astype(np.int32)
    return Interactions(users.astype(np.int32), items, np.arange(len(users)), *names)


LOG = make_log(HISTORIES)


def make_config(**changes):
    config = get_config("mrgsrec")
    config.update_from_flattened_dict(
        {
            "model.dim": WIDTH,
            "seq.heads": HEADS,
            "seq.dropout": 0.0,
            "seq.max_len": LENGTH,
            "seq.feed_forward": 3,
            "train.batch": USERS,
            "loss.token_chunk": 24,
        }
        | {name.replace("__", "."): value for name, value in changes.items()}
    )
    build.check(config)
    return config


def make_model(mask="causal", blocks=2):
    config = make_config(mrgsrec__user_token_mask=mask, seq__blocks=blocks)
    return build.make_model(config, USERS, ITEMS)


def pack(*rows):
    """Rows of (user, items) with a token behind each; the rest is empty."""
    slots = [[[*items, TOKEN] for _, items in row] for row in rows]
    users = np.array([user for row in rows for user, _ in row])
    return test_encoders.pack(*slots)._replace(users=users)  # rows of LENGTH too


# --- second writings: the token first, as published, and one sequence at a time -------


def numpy_states(model, params, user, items):
    """(token's output [D], items' states [n, D]); params in float64."""
    p, n = params["sequence"], len(items)
    from_end = np.arange(n)[::-1]
    x = params["item_table"][items] + p["positions"][from_end]
    x = numpy_norm(p["embedding_norm"], x, 1e-9)
    x = np.concatenate([params["user_table"][[user]], x])
    allowed = np.zeros((n + 1, n + 1), bool)
    allowed[0] = True  # the token sees all
    allowed[1:, 0] = model.encoder.user_token_mask == "leaky"  # and is it seen?
    for t in range(1, n + 1):
        allowed[t, 1 : t + 1] = True
    for block in range(model.encoder.blocks):
        attended = numpy_attention(p[f"attention_{block}"], x, x, HEADS, allowed)
        x = numpy_norm(p[f"attention_norm_{block}"], x + attended, 1e-9)
        first, second = (p[f"feed_forward_{name}_{block}"] for name in ("in", "out"))
        inner = x @ first["kernel"] + first["bias"]
        inner *= (1 + np.vectorize(math.erf)(inner / np.sqrt(2))) / 2
        outer = inner @ second["kernel"] + second["bias"]
        x = numpy_norm(p[f"feed_forward_norm_{block}"], x + outer, 1e-9)
    return x[0], x[1:]


def numpy_fusion(params, token, graph_user):
    p = params["fusion"]
    x = np.concatenate([token, graph_user]) @ p["in"]["kernel"] + p["in"]["bias"]
    x *= (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2
    return x @ p["out"]["kernel"] + p["out"]["bias"]


def numpy_unit(x):
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def numpy_graph(params, layers=1, unit=True):
    """(users, items): mean of E and of the l2-normalised A~ E, A~ A~ E, ..., dense."""
    rows = len(params["item_table"])
    a = np.zeros((USERS + rows, USERS + rows))
    for user, history in enumerate(HISTORIES):
        for item in history:
            a[user, USERS + item] = a[USERS + item, user] = 1
    root = np.sqrt(np.maximum(a.sum(1), 1))
    a /= root[:, None] * root[None, :]
    x = np.concatenate([params["user_table"], params["item_table"]])
    total = x.copy()
    for _ in range(layers):
        x = a @ x
        total += numpy_unit(x) if unit else x
    total /= layers + 1
    return total[:USERS], total[USERS:]


def log1p_exp(x):
    return np.logaddexp(0, x)


def numpy_ranking(states, table, targets, n_items):
    """Over tokens and items one by one."""
    values = [
        np.mean([log1p_exp(x @ (table[i] - table[t])) for i in range(1, n_items + 1)])
        for x, t in zip(states, targets, strict=True)
        if t > 0
    ]
    return np.mean(values)


def numpy_cross_entropy(states, table, targets):
    scores = states @ table[1 : ITEMS + 1].T
    own = scores[np.arange(len(targets)), np.array(targets) - 1]
    return np.mean(np.log(np.exp(scores).sum(-1)) - own)


def numpy_infonce(a, b):
    views = numpy_unit(np.concatenate([a, b]))
    values = []
    for n, view in enumerate(views):
        scores = views @ view
        others = np.delete(scores, n)
        values.append(np.log(np.exp(others).sum()) - scores[(n + len(a)) % len(views)])
    return np.mean(values) / 2


def numpy_parts(model, params):
    """The four losses of the whole log, user by user."""
    users, items = numpy_graph(params)
    states, targets, graph_users, fused = [], [], [], []
    for user in LEARNERS:
        read = HISTORIES[user][:-1][-(LENGTH - 1) :]
        token, own = numpy_states(model, params, user, read)
        states.extend(own)
        targets += HISTORIES[user][-len(read) :]
        graph_users += [users[user]] * len(read)
        fused += [numpy_fusion(params, token, users[user])] * len(read)
    table, graph_users = params["item_table"], np.array(graph_users)
    return {
        "local": numpy_cross_entropy(np.array(states), items, targets),
        "global": numpy_ranking(graph_users, items, targets, ITEMS),
        "fused": numpy_ranking(fused, table, targets, ITEMS),
        "align": numpy_infonce(np.array(states), graph_users),
    }


# --- encoder and fusion ---------------------------------------------------------------

MASKS = ("causal", "leaky")
both = pytest.mark.parametrize("mask", MASKS)
MODELS = {(m, b): make_model(m, b) for m in MASKS for b in (1, 2)}
PARAMS = make_params(MODELS["causal", 2])  # blocks that a model lacks are not read
ENCODE = {
    name: jax.jit(lambda params, batch, m=m: MRGSRec.encode(m, params, batch)[0])
    for name, m in MODELS.items()
}
PACKED = pack(
    [(3, [3, 1, 7, 2]), (9, [5])],
    [(0, [9]), (29, [2, 11, 6])],
    [(4, [10, 4, 8, 1, 1, 7])],
)
SEQUENCES = [
    *((0, 0, 3, [3, 1, 7, 2]), (0, 5, 9, [5]), (1, 0, 0, [9]), (1, 2, 29, [2, 11, 6])),
    (2, 0, 4, [10, 4, 8, 1, 1, 7]),
]


def states(name, batch, params=PARAMS):
    found = ENCODE[name](params, batch)
    return np.asarray(found).reshape(*batch.items.shape, WIDTH)


@both
@pytest.mark.parametrize("blocks, small", [(1, False), (2, False), (2, True)])
def test_the_encoder_is_the_second_writing(mask, blocks, small):
    """Small inputs show the epsilon of the norms, large weights the form of GELU."""
    scale = 1e-4 if small else 1.0
    own = dict(PARAMS["sequence"], positions=scale * PARAMS["sequence"]["positions"])
    for block in range(2):
        layer = f"feed_forward_in_{block}"
        own[layer] = jax.tree.map(lambda x: 2 * x, own[layer])
    params = PARAMS | {"sequence": own, "item_table": scale * PARAMS["item_table"]}
    found = states((mask, blocks), PACKED, params)
    exact = in_float64(params)
    for row, start, user, items in SEQUENCES:
        arguments = MODELS[mask, blocks], exact, user, items
        token, of_items = numpy_states(*arguments)
        end = start + len(items)
        np.testing.assert_allclose(found[row, start:end], of_items, atol=2e-5)
        np.testing.assert_allclose(found[row, end], token, atol=2e-5)


def test_a_query_is_the_fused_user_and_scores_the_table_itself():
    model, exact = MODELS["leaky", 2], in_float64(PARAMS)
    _, _, graph = feeds.make_graph(make_config(), model, LOG, shards=1)

    @jax.jit
    def ask(params, graph, batch):
        common = dict(by_graph=False)
        source, table = MRGSRec.query_tables(model, params, graph, **common)
        return MRGSRec.query_vectors(model, params, source, batch, **common), table

    fused, table = ask(PARAMS, graph, PACKED)
    np.testing.assert_array_equal(table, PARAMS["item_table"])
    graph_users, _ = numpy_graph(exact)
    assert fused.shape == (len(SEQUENCES), WIDTH)
    for found, (_, _, user, items) in zip(fused, SEQUENCES, strict=True):
        token, _ = numpy_states(model, exact, user, items)
        expected = numpy_fusion(exact, token, graph_users[user])
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@both
def test_a_sequence_does_not_see_its_row_neighbours_or_empty_slots(mask):
    before = states((mask, 2), PACKED)
    real = PACKED.segments > 0
    assert (~real).sum() == 1
    for n, (row, start, _, items) in enumerate(SEQUENCES):
        own = np.zeros_like(real)
        own[row, start : start + len(items) + 1] = True
        is_item = own & (PACKED.items < TOKEN)
        users = PACKED.users.copy()
        users[n] = 13
        changed = np.where(is_item, PACKED.items % ITEMS + 1, PACKED.items)
        after = states((mask, 2), PACKED._replace(items=changed, users=users))
        np.testing.assert_array_equal(before[~own & real], after[~own & real])
        assert (before[own] != after[own]).any(-1).all()
    for filler in (5, TOKEN):
        items = np.where(real, PACKED.items, filler)
        after = states((mask, 2), PACKED._replace(items=items))
        np.testing.assert_array_equal(before[real], after[real])


def moved(name, column=None, user=None):
    """How far each state of the sequence of six items goes when one item changes, or
    its user."""
    items, users = PACKED.items.copy(), PACKED.users.copy()
    if column is not None:
        items[2, column] = 12
    if user is not None:
        users[-1] = user
    changed = states(name, PACKED._replace(items=items, users=users))
    return np.abs(changed - states(name, PACKED))[2].max(-1)


@pytest.mark.parametrize("blocks", [1, 2])
def test_causal_shows_no_item_a_later_one_and_no_item_the_user(blocks):
    for column in range(6):
        distance = moved(("causal", blocks), column)
        assert (distance[:column] == 0).all()
        assert (distance[column:] > 1e-4).all()  # the token is behind all of them
    distance = moved(("causal", blocks), user=13)
    assert (distance[:-1] == 0).all() and distance[-1] > 1e-4


def test_leaky_leaks_later_items_from_the_second_block_on():
    for column in range(6):
        one, two = (moved(("leaky", blocks), column) for blocks in (1, 2))
        # One block: items read the token as it came in, the user's row alone.
        assert (one[:column] == 0).all()
        assert (one[column:] > 1e-4).all()
        assert (two > 1e-4).all()  # the next item is in the state that predicts it
    for blocks in (1, 2):
        assert (moved(("leaky", blocks), user=13) > 1e-4).all()


# --- ranking over all items -----------------------------------------------------------

TOKENS = 24


def ranking_inputs():
    rng = np.random.default_rng(5)
    states = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32)
    table = rng.normal(size=(ITEMS + 2, WIDTH)).astype(np.float32)
    targets = rng.integers(1, ITEMS + 1, TOKENS)
    targets[[0, 3, 6, 7, 8, 9, 10, 11, 23]] = 0  # all of the second of four parts
    targets[[1, 2]] = 1, ITEMS
    return states, table, targets.astype(np.int32)


def dense_ranking(states, table, targets):
    items = table[1 : ITEMS + 1]
    own = table[targets]
    apart = jnp.einsum("md,mid->mi", states, own[:, None] - items[None])
    values = -jnp.log(1 / (1 + jnp.exp(-apart))).mean(-1)
    return jnp.sum(jnp.where(targets > 0, values, 0)) / jnp.sum(targets > 0)


def ranking(chunk, axis_name=None):
    common = dict(n_items=ITEMS, token_chunk=chunk, axis_name=axis_name)
    return jax.value_and_grad(partial(losses.all_item_ranking, **common), (0, 1))


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_all_item_ranking_is_the_loop_and_has_the_dense_gradient(chunk):
    inputs = ranking_inputs()
    value, slopes = jax.jit(ranking(chunk))(*inputs)
    states, table, targets = inputs
    second = numpy_ranking(in_float64(states), in_float64(table), targets, ITEMS)
    np.testing.assert_allclose(value, second, rtol=1e-5)
    expected = jax.jit(jax.grad(dense_ranking, (0, 1)))(*inputs)
    for found, slope in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-6)
    assert (slopes[1][jnp.array([0, ITEMS + 1])] == 0).all()  # no candidates
    assert (np.abs(slopes[1][1 : ITEMS + 1]) > 1e-4).any(-1).all()


def test_tokens_without_target_count_nothing_in_all_item_ranking():
    states, table, targets = ranking_inputs()
    run = jax.jit(ranking(7))
    value, slopes = run(states, table, targets)
    empty = targets == 0
    other = np.where(empty[:, None], 100 * states + 9, states)
    again, others = run(other, table, targets)
    assert value == again
    assert (others[0][empty] == 0).all() and (slopes[0][~empty] != 0).any()
    np.testing.assert_array_equal(slopes[1], others[1])
    value, slopes = run(states, table, np.zeros_like(targets))
    assert value == 0 and all((slope == 0).all() for slope in slopes)


def test_all_item_ranking_stays_finite_at_large_scores():
    states, table, targets = ranking_inputs()
    states = 1000 * states
    value, slopes = jax.jit(ranking(7))(states, table, targets)
    second = numpy_ranking(in_float64(states), in_float64(table), targets, ITEMS)
    np.testing.assert_allclose(value, second, rtol=1e-5)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_all_item_ranking_in_four_parts_is_the_whole():
    states, table, targets = ranking_inputs()
    expected, (d_states, d_table) = jax.jit(ranking(7))(states, table, targets)
    parts = states.reshape(4, -1, WIDTH), targets.reshape(4, -1)
    assert len(set((parts[1] > 0).sum(1))) > 1 and not parts[1][1].any()
    mapped = jax.vmap(ranking(4, "parts"), in_axes=(0, None, 0), axis_name="parts")
    values, (of_parts, of_table) = jax.jit(mapped)(parts[0], table, parts[1])
    np.testing.assert_allclose(values, np.full(4, expected), rtol=1e-6)
    # The mean over devices of the gradients is the gradient (losses.py).
    np.testing.assert_allclose(of_table.mean(0), d_table, rtol=1e-4, atol=1e-7)
    found = of_parts.reshape(TOKENS, WIDTH) / 4
    np.testing.assert_allclose(found, d_states, rtol=1e-4, atol=1e-7)


# --- the graph ------------------------------------------------------------------------


@pytest.mark.parametrize("layers, unit", [(1, True), (3, True)])
def test_normalised_lightgcn_is_the_mean_of_ego_and_unit_layers(layers, unit):
    changes = {"graph.lightgcn.layers": layers, "graph.lightgcn.normalise": unit}
    config = make_config(**changes)
    model = build.make_model(config, USERS, ITEMS)
    _, _, graph = feeds.make_graph(config, model, LOG, shards=1)

    @jax.jit
    def run(params, graph):
        def total(params):
            found = model.graph.encode(params, graph, model.graph_settings)
            return sum(jnp.sum(x**3) for x in found[:2]), found[:2]

        return jax.grad(total, has_aux=True)(params)

    slopes, found = run(PARAMS, graph)
    expected = numpy_graph(in_float64(PARAMS), layers, unit)
    tables = PARAMS["user_table"], PARAMS["item_table"]
    # A user without items and an item without users are a share of themselves.
    for own, second, table, alone in zip(
        found, expected, tables, (17, ITEMS), strict=True
    ):
        np.testing.assert_allclose(own, second, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own[alone] * (layers + 1), table[alone], rtol=1e-5)
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


# --- the loss -------------------------------------------------------------------------


def make_inputs(config, shards=1):
    """(model, phase, graph, the first step's batch) of the log."""
    model = build.make_model(config, USERS, ITEMS)
    (phase,) = build.make_phases(config)
    rows, pairs, graph = feeds.make_graph(config, model, LOG, shards)
    feed = feeds.Feed(config, model, phase, LOG, rows, pairs, shards)
    assert feed.steps == 1
    batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
    return model, phase, graph, batch


def test_the_loss_is_the_weighted_sum_of_the_second_writings():
    config = make_config(loss__w_fused=0.3)
    model, phase, graph, batch = make_inputs(config)
    phase = phase._replace(local=1.5, w_global=0.7, w_align=0.9)
    params = make_params(model, seed=3)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def run(params, batch, graph):
        args = params, batch, graph, jax.random.key(0)
        return MRGSRec.loss(model, phase, *args)

    def second(params):
        parts = numpy_parts(model, params)
        weights = {"local": 1.5, "global": 0.7, "fused": 0.3, "align": 0.9}
        return sum(weights[name] * parts[name] for name in weights), parts

    (total, parts), slopes = run(params, batch, graph)
    exact = in_float64(params)
    expected, expected_parts = second(exact)
    assert parts.keys() == expected_parts.keys()
    for name, value in parts.items():
        np.testing.assert_allclose(value, expected_parts[name], rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(total, expected, rtol=2e-5)
    # The slope along one direction in each group, by differences of the writing.
    rng = np.random.default_rng(1)
    for group in exact:
        leaves, structure = jax.tree.flatten(exact[group])
        along = [rng.normal(size=leaf.shape) for leaf in leaves]
        ends = []
        for step in (1e-6, -1e-6):
            there = [x + step * d for x, d in zip(leaves, along, strict=True)]
            ends.append(second(exact | {group: structure.unflatten(there)})[0])
        expected = (ends[0] - ends[1]) / 2e-6
        own = jax.tree.leaves(slopes[group])
        found = sum((x * d).sum() for x, d in zip(own, along, strict=True))
        assert abs(expected) > 1e-2
        np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=group)


def test_the_published_weights_and_a_loss_without_alignment():
    configs = [make_config(seq__blocks=1), make_config(align__kind="none")]
    configs[1].seq.blocks = 1
    inputs = [make_inputs(config) for config in configs]
    params = make_params(inputs[0][0])

    @jax.jit
    def run(params, batch, graph):
        args = params, batch, graph, jax.random.key(0)
        return [MRGSRec.loss(*own[:2], *args) for own in inputs]

    (total, parts), (less, fewer) = run(params, inputs[0][3], inputs[0][2])
    weights = {"local": 1.0, "global": 0.1, "fused": 0.5, "align": 0.05}
    assert parts.keys() == weights.keys()
    expected = sum(weights[name] * value for name, value in parts.items())
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert fewer.keys() == weights.keys() - {"align"}
    np.testing.assert_allclose(total - less, 0.05 * parts["align"], rtol=1e-3)


class Case(test_steps.Case):
    """A step over eight shards with uneven numbers of tokens and of sequences."""

    def __init__(self):
        config = make_config(seq__blocks=1)
        self.model, phase, graph, batch = make_inputs(config, SHARDS)
        self.phase = phase._replace(w_global=0.7, w_align=0.9)
        targets = batch.sequences.targets.copy()
        slots = targets.shape[0] // SHARDS
        targets[2 * slots : 3 * slots] = 0  # a shard without any target
        batch = batch._replace(sequences=batch.sequences._replace(targets=targets))
        tokens = (targets > 0).reshape(SHARDS, -1).sum(1)
        users = batch.sequences.weights.reshape(SHARDS, -1).sum(1)
        assert len(set(tokens)) > 2 and tokens[2] == 0 and users.min() < users.max()
        params, keep = make_params(self.model, seed=1), test_steps.KEEP
        state = steps.TrainState(jnp.int32(0), params, optim.init(keep, params))
        inputs = state, batch, graph, make_inputs(config)[2]
        inputs = test_steps.in_float64(inputs)
        self.state, self.batch, self.graph, self.whole_graph = inputs


@pytest.mark.services  # ten seconds; test_steps.py has it of CREATE
@pytest.mark.usefixtures("double_precision")
def test_eight_devices_give_the_step_of_one_device():
    case = Case()
    expected = case.on_one_device()
    names = "local", "global", "fused", "align"
    assert expected[0].keys() == {"loss", "grad_norm", *(f"loss/{n}" for n in names)}
    state, sums = test_steps.by_compiled_phase(case)
    found = sums, test_steps.gradients(state)
    groups = "item_table", "user_table", "sequence", "fusion"
    test_steps.same(found, expected, groups)


# --- packing --------------------------------------------------------------------------


def test_a_training_sequence_is_all_but_the_newest_item_and_a_token():
    sequences = packing.training_sequences(LOG, LENGTH, TOKEN, hides=False)
    assert sequences.owners.tolist() == LEARNERS
    sizes = [min(len(HISTORIES[user]) - 1, LENGTH - 1) + 1 for user in LEARNERS]
    assert sequences.lengths.tolist() == sizes
    assert {2, LENGTH} <= set(sizes) and max(sizes) == LENGTH
    for shards in (1, 4):
        layout = packing.make_layout(
            sequences.lengths, batch=USERS, row_length=LENGTH, shards=shards
        )
        plan = packing.plan_epoch(sequences.lengths, layout, seed=0, epoch=0)
        batch = packing.fill(plan, sequences, layout, shift=True)
        batch = jax.tree.map(lambda x: x[0], batch)
        sequences_found = 0
        for part in range(shards):
            own = jax.tree.map(
                lambda x, p=part, n=shards: np.array_split(x, n)[p], batch
            )
            for user in own.users[own.weights > 0]:
                history, slots = HISTORIES[user], slots_of(own, user)
                flat = jax.tree.map(np.ravel, own)._asdict()
                read = history[:-1][-(LENGTH - 1) :]
                assert flat["items"][slots].tolist() == [*read, TOKEN]
                assert flat["targets"][slots].tolist() == [*history[-len(read) :], 0]
                assert flat["positions"][slots].tolist() == list(range(len(slots)))
                assert len(set(flat["segments"][slots])) == 1
                sequences_found += 1
        assert sequences_found == len(LEARNERS)
        assert (batch.segments > 0).sum() == sum(sizes)
        assert (batch.items == TOKEN).sum() == len(LEARNERS)
        assert not batch.targets[batch.segments == 0].any()


def test_the_feed_gives_these_sequences_and_no_pairs():
    config = make_config(**{"train.batch": 9, "train.chunk": 2})
    model = build.make_model(config, USERS, ITEMS)
    (phase,) = build.make_phases(config)
    assert phase.w_global > 0  # other methods would get pairs
    rows, pairs, _ = feeds.make_graph(config, model, LOG, shards=1)
    feed = feeds.Feed(config, model, phase, LOG, rows, pairs, shards=1)
    plan, owners = feed.plan(0), []
    for chunk in range(feed.chunks):
        batch = feed.batch(plan, chunk)
        assert batch.edges is None and batch.views is None
        for step in range(feed.chunk_steps):
            own = jax.tree.map(lambda x, s=step: x[s], batch.sequences)
            for user in own.users[own.weights > 0]:
                slots = slots_of(own, user)
                read = HISTORIES[user][:-1][-(LENGTH - 1) :]
                assert own.items.ravel()[slots].tolist() == [*read, TOKEN]
                expected = [*HISTORIES[user][-len(read) :], 0]
                assert own.targets.ravel()[slots].tolist() == expected
                owners.append(int(user))
    assert sorted(owners) == LEARNERS


def test_queries_end_with_the_token_after_the_newest_items():
    holdout = four_queries(ITEMS)
    axes = dict(axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    mesh = jax.make_mesh((1,), (DATA,), **axes)
    config = make_config(**{"eval.batch": 4})
    model = MODELS["causal", 2]
    score = evaluate.model_scores(model, mesh, by_graph=False)
    evaluator = evaluate.make_evaluator(
        *(config, holdout, score, mesh, model.mask),
        **dict(ks=[ITEMS], filter_seen=False, keep_lists=True),
    )
    (queries,) = evaluator.chunks()
    batch = jax.tree.map(lambda x: np.asarray(x)[0], queries.histories)
    exact, (_, _, graph) = in_float64(PARAMS), feeds.make_graph(config, model, LOG, 1)
    graph_users, _ = numpy_graph(exact)
    top = evaluator.run(PARAMS, graph).top
    for n, user in enumerate(holdout.users):
        newest = holdout.log[holdout.begin[n] : holdout.end[n]][-(LENGTH - 1) :]
        found = batch.items.ravel()[slots_of(batch, user)]
        assert found.tolist() == [*newest, TOKEN]
        # The whole catalogue, without padding and token, by the fused user.
        token, _ = numpy_states(model, exact, user, newest)
        fused = numpy_fusion(exact, token, graph_users[user])
        scores = exact["item_table"][1 : ITEMS + 1] @ fused
        assert top[n].tolist() == (1 + np.argsort(-scores)).tolist()


# --- settings -------------------------------------------------------------------------


OTHERS = {  # what CREATE may do and this system does not
    "seq.encoder": "bert4rec",
    "warmup.epochs": 3,
    "item_source.input": "propagated",
    "item_source.output": "propagated",
    "align.partner": "same_target",  # views without the token
    "align.positions": "last",
    "align.user_source": "ego",
    "align.stop_grad": "local",
}


def test_the_config_is_the_published_one():
    assert OTHERS.keys() == methods.METHODS["mrgsrec"].fixed.keys()
    config = get_config("mrgsrec")
    build.check(config)
    assert config.graph.encoder == "lightgcn" and config.graph.lightgcn.layers == 1
    assert config.graph.lightgcn.normalise
    assert (config.seq.blocks, config.seq.heads, config.seq.feed_forward) == (2, 2, 4)
    assert (config.model.dim, config.seq.dropout) == (64, 0.3)
    assert config.mrgsrec.user_token_mask == "causal"
    assert (config.align.kind, config.align.temperature) == ("infonce", 1.0)
    (phase,) = build.make_phases(config)
    assert phase == Phase("joint", config.train.epochs, 1.0, 0.1, 0.05)
    assert config.loss.w_fused == 0.5
    model = build.make_model(config, USERS, ITEMS)
    assert type(model) is MRGSRec and not model.reads_edges
    assert (model.mask, model.n_rows, model.objective) == (TOKEN, ITEMS + 1, "next")
    assert model.graph_settings["normalise"] and model.graph_settings["layers"] == 1
    # Nobody else has unit layers or a user token.
    assert not get_config("lightgcn").graph.lightgcn.normalise
    other = build.make_model(get_config("create"), USERS, ITEMS)
    assert other.mask == 0 and other.reads_edges


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("graph.encoder", "none", "config.graph.encoder is 'none'"),
        ("mrgsrec.user_token_mask", "both", "expected one of causal, leaky"),
        ("loss.w_fused", -0.1, "expected 0 or more"),
        *[(key, other, ", for mrgsrec; set it") for key, other in OTHERS.items()],
    ],
)
def test_what_cannot_work_is_an_input_error(key, value, reason):
    with pytest.raises(InputError) as caught:
        make_config(**{key: value})
    assert reason in str(caught.value) and key in str(caught.value)


def test_parameters_begin_with_the_tables_of_create():
    model = build.make_model(make_config(), USERS, ITEMS)
    params = jax.eval_shape(lambda: model.init(0))
    names = "item_table", "user_table"
    other = build.make_model(make_config(method="create"), USERS, ITEMS)
    tables, others = jax.jit(
        lambda: [{name: m.init(0)[name] for name in names} for m in (model, other)]
    )()
    # The token is the user's row: there is no other.
    assert set(params) == {"item_table", "user_table", "sequence", "fusion"}
    assert params["item_table"].shape == (ITEMS + 1, WIDTH)
    assert (tables["item_table"][0] == 0).all()
    assert params["user_table"].shape == (USERS, WIDTH)
    assert params["sequence"]["positions"].shape == (LENGTH, WIDTH)
    assert params["fusion"]["in"]["kernel"].shape == (2 * WIDTH, 3 * WIDTH)
    assert params["fusion"]["out"]["kernel"].shape == (3 * WIDTH, WIDTH)
    np.testing.assert_array_equal(tables["user_table"], others["user_table"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"graph.encoder": "signed"},
        {"graph.encoder": "hypergraph", "graph.hypergraph.convolution": "gin"},
        {"graph.encoder": "hypergraph", "graph.hypergraph.convolution": "gat"},
    ],
    ids=["lightgcn", "signed", "gin", "gat"],
)
def test_every_parameter_is_trained(changes):
    config = make_config(**changes)
    model = build.make_model(config, USERS, ITEMS)
    (phase,) = build.make_phases(config)
    shapes = jax.eval_shape(lambda: model.init(0))
    assert set(shapes) <= set(model.trained_groups(phase))


def test_an_alignment_with_projectors_runs_or_is_refused():
    try:
        config = make_config(**{"align.projector_dims": (4, 4)})
    except InputError:
        return
    model, phase, graph, batch = make_inputs(config)
    params = jax.eval_shape(lambda: model.init(0))
    loss = partial(MRGSRec.loss, model, phase)
    total, _ = jax.eval_shape(loss, params, batch, graph, jax.random.key(0))
    assert total.shape == ()
