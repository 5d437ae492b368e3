"""Self-GNN against dense matrices, and what its losses may see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from create_jax import build, feeds, methods
from create_jax.configs import table
from create_jax.data.interactions import Interactions
from create_jax.errors import InputError
from create_jax.models import selfgnn
from create_jax.models.selfgnn import SelfGNN

USERS, ITEMS, INTERVALS = 4, 6, 3
# Users' items with their times, 0..8: three intervals of three.
ROWS = [
    [(0, 1), (2, 2), (3, 4), (7, 3)],
    [(1, 2), (4, 5), (5, 6)],
    [(0, 6), (8, 1)],
    [(6, 2), (7, 4), (7, 5), (8, 6)],
]


def make_log():
    users = np.repeat(np.arange(USERS), [len(rows) for rows in ROWS])
    times, items = np.array([row for rows in ROWS for row in rows]).T
    names = pl.Series(["a", "b", "c", "d"]), pl.Series(list("abcdef"))
    return Interactions(
        users.astype(np.int32), items.astype(np.int32), times.astype(np.int64), *names
    )


@pytest.fixture(scope="module")
def case():
    """(model, parameters that matter, graph, a batch of all sequences)."""
    config = table.get_config("selfgnn")
    config.model.dim = 4
    config.seq.update(blocks=2, heads=2, dropout=0.0, max_len=5)
    config.graph.selfgnn.intervals = INTERVALS
    build.check(config)
    log = make_log()
    model = build.make_model(config, USERS, ITEMS)
    rows, pairs, graph = feeds.make_graph(config, model, log, 1)
    (phase,) = build.make_phases(config)
    feed = feeds.Feed(config, model, phase, log, rows, pairs, 1)
    batch = feed.batch(feed.plan(0), 0)
    assert batch.edges is None
    shapes = jax.eval_shape(lambda: model.init(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes
    )
    return model, phase, params, graph, jax.tree.map(lambda x: jnp.asarray(x[0]), batch)


@pytest.mark.parametrize("scale", [1, 10**15])
def test_intervals_are_of_equal_length_in_any_unit(monkeypatch, scale):
    """Nanoseconds times the number of intervals do not fit 64 bits."""
    parts = []
    monkeypatch.setattr(
        selfgnn.lightgcn, "prepare", lambda _, pairs, *rest: parts.append(pairs)
    )
    log = make_log()
    log = log._replace(times=log.times * scale + 5)
    selfgnn.prepare(log, None, 8, {"intervals": 100})
    start, span = int(log.times.min()), int(np.ptp(log.times)) + 1
    expected = [(int(t) - start) * 100 // span for t in log.times]
    counts = [len(pairs.users) for pairs in parts]
    assert counts == np.bincount(expected, minlength=100).tolist()


def slope_below(x):
    return np.where(x > 0, x, 0.2 * x)


def dense_intervals(params):
    """[T, U + V, D] by dense matrices."""
    found = []
    for t in range(INTERVALS):
        a = np.zeros((USERS + ITEMS + 1,) * 2)
        for u, rows in enumerate(ROWS):
            for time, item in rows:
                if time // 3 == t:
                    a[u, USERS + item] = a[USERS + item, u] = 1
        degree = np.maximum(a.sum(0), 1)
        a /= np.sqrt(degree[:, None] * degree)
        x = np.concatenate([params["user_table"][t], params["item_table"][t]])
        total = x.copy()
        for _ in range(2):
            x = x + slope_below(a @ x)
            total += x
        found.append(total)
    return np.stack(found)


def test_intervals_are_dense_layers_summed(case):
    model, _, params, graph, _ = case
    found = jax.jit(partial(SelfGNN.encode_intervals, model))(params, graph)
    np.testing.assert_allclose(found, dense_intervals(params), rtol=1e-5, atol=1e-5)


def attention(layer, x):
    """Self-attention over [T, D], nothing hidden."""

    def head(name):
        kernel, bias = layer[name]["kernel"], layer[name]["bias"]
        return np.einsum("td,dhk->thk", x, kernel) + bias

    q, k, v = head("query"), head("key"), head("value")
    scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("hts,shk->thk", weights, v)
    kernel, bias = layer["output"]["kernel"], layer["output"]["bias"]
    return np.einsum("thk,hkd->td", mixed, kernel) + bias


def attended(own, x):
    """[D] of the items [T, D] of a history."""
    x = x + own["positions"][: len(x)]
    for block in range(2):
        x = x + attention(own[f"attention_{block}"], x)
    return slope_below(x.sum(0))


def test_a_query_is_the_user_and_the_summed_attention_of_its_history(case):
    """Written out for each user alone, without packing."""
    model, _, params, graph, batch = case
    source, items = jax.jit(partial(SelfGNN.query_tables, model, by_graph=False))(
        params, graph
    )
    found = jax.jit(partial(SelfGNN.query_vectors, model, by_graph=False))(
        params, source, batch.sequences
    )
    own, items = params["sequence"], np.asarray(items, np.float64)
    sequences = batch.sequences
    for place in np.flatnonzero(sequences.weights):
        user = sequences.users[place]
        history = [item for _, item in ROWS[user]][:-1]
        expected = source[0][user] + attended(own, items[history])
        np.testing.assert_allclose(found[place], expected, rtol=2e-4, atol=2e-4)


def test_long_term_vectors_depend_on_the_order_of_the_intervals(case):
    model, _, params, graph, _ = case
    intervals = SelfGNN.encode_intervals(model, params, graph)
    long_term = jax.jit(partial(selfgnn.long_term, params))
    assert long_term(intervals).shape == (USERS + ITEMS + 1, 4)
    assert not np.allclose(long_term(intervals), long_term(intervals[::-1]))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def remembered(memory, x):
    """[T, D] vectors of a node's intervals -> [D], the LSTM by its equations."""
    lstm, found = memory["OptimizedLSTMCell_0"], []
    h = c = np.zeros(x.shape[1])
    for now in x:
        i, f, g, o = (
            now @ lstm[f"i{gate}"]["kernel"]
            + h @ lstm[f"h{gate}"]["kernel"]
            + lstm[f"h{gate}"]["bias"]
            for gate in "ifgo"
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return attention(memory["attention"], np.stack(found)).mean(0)


def losses_by_hand(params, batch, key):
    """The parts of the loss: a loop over users; only what is drawn is drawn by JAX."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    short = dense_intervals(params)
    long = np.stack([remembered(params["memory"], x) for x in short.swapaxes(0, 1)])
    users, items, gate = long[:USERS], long[USERS:], params["gate"]
    draws, n = jax.random.split(jax.random.fold_in(key, 4), 3), len(batch.users)
    negatives = np.asarray(jax.random.randint(draws[0], (n,), 1, ITEMS + 1))
    back = [np.asarray(jax.random.uniform(draw, (n,))) for draw in draws[1:]]
    parts = {"local": [], "global": [], "decay": []}
    for place in np.flatnonzero(batch.weights):
        user = int(batch.users[place])
        *history, target = (item for _, item in ROWS[user])
        u = users[user]
        query = u + attended(params["sequence"], items[history])
        gap = query @ (items[target] - items[negatives[place]])
        parts["local"].append(max(0, 1 - gap))

        one, other = (history[-1 - int(x[place] * len(history))] for x in back)
        selves = []
        for t in range(INTERVALS):
            v = short[t, user]
            kernel = gate["kernel"][:, 0]
            opened = sigmoid(np.concatenate([u, v, u * v]) @ kernel + gate["bias"][0])
            trusted = opened * (u @ (items[one] - items[other]))
            gap = v @ (short[t, USERS + one] - short[t, USERS + other])
            selves.append(max(0, 1 - trusted * gap))
        parts["global"].append(np.mean(selves))
        rows = params["user_table"][:, user], params["item_table"][:, target]
        parts["decay"].append(sum(np.sum(x**2) for x in rows) / 2)
    return {name: np.mean(values) for name, values in parts.items()}


def test_the_loss_reaches_every_parameter_and_its_parts_add_up(case):
    model, phase, params, graph, batch = case
    loss = partial(SelfGNN.loss, model, phase)
    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, parts), grads = slope(params, batch, graph, jax.random.key(0))
    by_hand = losses_by_hand(params, batch.sequences, jax.random.key(0))
    assert parts.keys() == by_hand.keys()
    for name, value in by_hand.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)
    expected = parts["local"] + 2e-3 * parts["global"] + 1e-2 * parts["decay"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert set(grads) == set(model.trained_groups(phase))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        # Softmax does not see the keys' bias.
        assert np.abs(leaf).max() > 1e-9 or name.endswith("['key']['bias']"), name


def test_the_score_gap_of_the_gate_gets_no_gradient(case):
    """The self-supervision alone moves long-term vectors by the gate only."""
    model, phase, params, graph, batch = case

    def selves(params):
        return SelfGNN.loss(model, phase, params, batch, graph, jax.random.key(0))[1][
            "global"
        ]

    def attention(params):
        return params["memory"]["attention"]["output"]["bias"]

    slope = jax.jit(jax.grad(selves))
    assert np.abs(attention(slope(params))).max() > 1e-9  # through the gate's features
    closed = params | {"gate": jax.tree.map(jnp.zeros_like, params["gate"])}
    assert np.abs(attention(slope(closed))).max() == 0  # and in no other way


def test_its_graph_is_for_it_alone():
    config = table.get_config("create")
    config.graph.encoder = "selfgnn"
    with pytest.raises(InputError, match="'selfgnn'; expected one of none, lightgcn"):
        build.check(config)


METHOD = methods.METHODS["selfgnn"]


@pytest.mark.parametrize("key", sorted(METHOD.fixed))
def test_settings_that_it_does_not_read_are_refused(key):
    config = table.get_config("selfgnn")
    build.check(config)
    others = {
        "align.kind": "infonce",
        "graph.encoder": "lightgcn",
        "align.partner": "same_target",
        "loss.local": "bce",
        "seq.encoder": "bert4rec",
    }
    value = others.get(key, 3 if isinstance(METHOD.fixed[key], int) else "propagated")
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=f"config.{key} is .*, for selfgnn"):
        build.check(config)
