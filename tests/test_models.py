"""The encoders' promises: causality, separation in a row, and a second writing."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from create_jax.configs.common import get_config
from jax.extend.random import threefry_2x32

from create_jax import build, losses
from create_jax.data.graph import EdgeBatch, Pairs
from create_jax.data.packing import Batch
from create_jax.models import transformer
from create_jax.models.create import Create

USERS, ITEMS, LENGTH = 6, 12, 7


def make_model(method="create", encoder="ultragcn", heads=2, blocks=1, **align):
    config = get_config(method)
    config.model.dim = 8
    config.seq.update(blocks=blocks, heads=heads, dropout=0.0, max_len=LENGTH)
    config.graph.encoder = encoder
    config.align.update(align)
    build.check(config)
    return build.make_model(config, USERS, ITEMS)


def make_params(model, seed=0):
    """All weights large: at the usual 0.02 the blocks hardly do anything."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(0))
    params = jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes
    )
    return params | {"item_table": params["item_table"].at[0].set(0.0)}


barlow_twins = jax.jit(losses.barlow_twins)


def pack(*rows, fillers=0):
    """A Batch of literal rows, each a list of (user, items); the last is a target."""
    shape = len(rows), LENGTH
    items, targets, positions, segments = (np.zeros(shape, np.int32) for _ in range(4))
    users, last = [], []
    for r, row in enumerate(rows):
        column = 0
        for n, (user, history) in enumerate(row, start=1):
            slots = slice(column, column + len(history) - 1)
            items[r, slots], targets[r, slots] = history[:-1], history[1:]
            positions[r, slots] = np.arange(len(history) - 1)
            segments[r, slots] = n
            column += len(history) - 1
            users.append(user)
            last.append(r * LENGTH + column - 1)
    weights = [1.0] * len(users) + [0.0] * fillers
    return Batch(
        *(jnp.asarray(x) for x in (items, targets, positions, segments)),
        users=jnp.array(users + [0] * fillers),
        last=jnp.array(last + [0] * fillers),
        weights=jnp.array(weights, jnp.float32),
    )


# Five sequences of 4, 2, 5, 1 and 3 tokens; rows end with 1, 1 and 4 empty slots.
A, B, C = (0, [3, 1, 7, 2, 9]), (4, [5, 3, 8]), (1, [2, 11, 4, 6, 12, 10])
S, E = (5, [9, 1]), (2, [7, 7, 3, 4])
BATCH = pack([A, B], [S, C], [E], fillers=2)

# As `fill` has it: neither sequences nor fillers in the order of the slots.
SHUFFLE = np.array([6, 2, 0, 5, 4, 1, 3])
MIXED = BATCH._replace(
    users=BATCH.users[SHUFFLE], last=BATCH.last[SHUFFLE], weights=BATCH.weights[SHUFFLE]
)

SASREC = make_model("sasrec", blocks=2)
PARAMS = make_params(SASREC)


@jax.jit
def encoded(params, batch):
    """States [rows, slots, D]."""
    states = Create.encode(SASREC, params, params["item_table"], batch)
    return states.reshape(*batch.items.shape, -1)


# --- SASRec ---------------------------------------------------------------------------


def in_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def numpy_norm(own, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * own["scale"] + own["bias"]


def numpy_attention(own, q, x, heads, allowed):
    """Softmax attention of q on x; allowed: [T, T] query t may see key s."""
    mixed = np.tile(own["output"]["bias"], (len(x), 1))
    for head in range(heads):
        query, key, value = (
            source @ own[name]["kernel"][:, head] + own[name]["bias"][head]
            for name, source in (("query", q), ("key", x), ("value", x))
        )
        for t, seen in enumerate(allowed):
            score = key[seen] @ query[t] / np.sqrt(x.shape[1] // heads)
            weight = np.exp(score - score.max())
            weight /= weight.sum()
            mixed[t] += weight @ value[seen] @ own["output"]["kernel"][head]
    return mixed


def numpy_sasrec(params, items, heads):
    """One whole sequence, after docs/models.md#sasrec, in float64."""
    p, table = in_float64((params["sequence"], params["item_table"]))

    def norm(name, x):
        return numpy_norm(p[name], x, 1e-8)

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    x = np.sqrt(table.shape[1]) * table[items] + p["positions"][: len(items)]
    past = np.tri(len(items), dtype=bool)
    for block in range(2):
        q = norm(f"attention_norm_{block}", x)
        # Queries are normalised, keys and values are not.
        attended = numpy_attention(p[f"attention_{block}"], q, x, heads, past)
        y = norm(f"feed_forward_norm_{block}", q + attended)
        inner = np.maximum(dense(f"feed_forward_in_{block}", y), 0)
        x = y + dense(f"feed_forward_out_{block}", inner)
    return norm("final_norm", x)


@pytest.mark.parametrize("heads", [1, 2])
def test_sasrec_is_the_uneven_pre_norm_block(heads):
    model = make_model("sasrec", heads=heads, blocks=2)
    params = make_params(model)
    encode = jax.jit(partial(Create.encode, model))
    found = np.asarray(encode(params, params["item_table"], BATCH))
    for (_, history), last in zip((A, B, S, C, E), BATCH.last.tolist(), strict=False):
        expected = numpy_sasrec(params, history[:-1], heads)
        states = found[last + 1 - len(expected) : last + 1]
        np.testing.assert_allclose(states, expected, rtol=2e-5, atol=2e-5)


def test_the_encoder_ignores_the_future():
    before = encoded(PARAMS, BATCH)
    for column in range(6):  # S, then C; slot 6 is empty
        changed = BATCH._replace(items=BATCH.items.at[1, column].set(8))
        after = encoded(PARAMS, changed)
        np.testing.assert_array_equal(before[1, :column], after[1, :column])
        # And it does look at the present.
        assert (before[1, column] != after[1, column]).any()
    # The last change reaches from the first item of C to its state at the end.
    changed = BATCH._replace(items=BATCH.items.at[1, 1].set(8))
    assert jnp.abs(encoded(PARAMS, changed)[1, 5] - before[1, 5]).max() > 1e-3


def test_a_user_does_not_see_its_row_neighbours():
    before = encoded(PARAMS, BATCH)
    others = BATCH.items.at[0, :4].set(jnp.array([12, 12, 10, 1]))
    after = encoded(PARAMS, BATCH._replace(items=others))
    np.testing.assert_array_equal(before[0, 4:6], after[0, 4:6])  # B, behind A
    others = BATCH.items.at[0, 4:6].set(jnp.array([12, 10]))
    after = encoded(PARAMS, BATCH._replace(items=others))
    np.testing.assert_array_equal(before[0, :4], after[0, :4])
    assert (before[0, 4:6] != after[0, 4:6]).any()


def test_the_place_in_a_row_is_immaterial():
    elsewhere = pack([E, A], [B], [C, S], fillers=2)
    mine, other = (
        encoded(PARAMS, batch).reshape(-1, 8)[batch.last]
        for batch in (BATCH, elsewhere)
    )
    order = [[*elsewhere.users.tolist()[:5]].index(u) for u in BATCH.users.tolist()[:5]]
    np.testing.assert_allclose(mine[:5], other[np.array(order)], rtol=1e-6, atol=2e-6)


def test_empty_slots_do_not_matter():
    before = encoded(PARAMS, BATCH)
    empty = BATCH.segments == 0
    assert int(empty.sum()) == 6
    changed = BATCH._replace(
        items=jnp.where(empty, 5, BATCH.items),
        positions=jnp.where(empty, 3, BATCH.positions),
    )
    after = encoded(PARAMS, changed)
    np.testing.assert_array_equal(before[~empty], after[~empty])
    assert jnp.isfinite(before).all()


def test_packing_does_not_change_the_loss_or_its_gradients():
    @jax.jit
    def with_slopes(params, batch):
        def loss(params):
            table = params["item_table"]
            states = Create.encode(SASREC, params, table, batch)
            return SASREC.local_loss(states, table, batch, jax.random.key(0))

        return jax.value_and_grad(loss)(params)

    value, slopes = with_slopes(PARAMS, BATCH)
    total, summed, tokens = 0.0, jax.tree.map(jnp.zeros_like, PARAMS), 0
    for user, history in (A, B, C, S, E):
        alone, own = with_slopes(PARAMS, pack([(user, history)], [], [], fillers=6))
        count = len(history) - 1
        total, tokens = total + count * alone, tokens + count
        summed = jax.tree.map(lambda s, g, n=count: s + n * g, summed, own)
    assert tokens == int((BATCH.targets > 0).sum()) == 15
    np.testing.assert_allclose(value, total / tokens, rtol=1e-6)
    for found, expected in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(summed), strict=True
    ):
        np.testing.assert_allclose(found, expected / tokens, rtol=1e-4, atol=2e-6)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(slopes["sequence"]))


def test_dropout_acts_in_training_only():
    config = get_config("sasrec")
    config.model.dim, config.seq.blocks = 8, 1
    model = build.make_model(config, USERS, ITEMS)
    params = make_params(model)

    @partial(jax.jit, static_argnums=0)
    def encode(train, key):
        return Create.encode(
            model, params, params["item_table"], BATCH, train=train, key=key
        )

    keys = jax.random.key(0), jax.random.key(1)
    np.testing.assert_array_equal(encode(True, keys[0]), encode(True, keys[0]))
    assert (encode(True, keys[0]) != encode(True, keys[1])).any()
    np.testing.assert_array_equal(encode(False, keys[0]), encode(False, keys[1]))


def test_a_large_catalogue_is_scored_in_parts_with_the_same_loss():
    states = encoded(PARAMS, BATCH).reshape(-1, SASREC.dim)
    inputs = states, PARAMS["item_table"], BATCH, jax.random.key(0)
    values, loops = [], []
    for changes in ({}, {"whole_items": ITEMS - 1, "item_chunk": 5}):
        model = replace(SASREC, local=partial(SASREC.local, **changes))
        loss = jax.jit(model.local_loss)
        loops.append(str(loss.trace(*inputs).jaxpr).count("scan"))
        values.append(loss(*inputs))
    np.testing.assert_allclose(*values, rtol=1e-6)
    assert loops[1] > loops[0]


# --- CREATE ---------------------------------------------------------------------------

EDGES = np.array([(0, 1), (0, 3), (1, 2), (1, 11), (2, 7), (4, 5), (4, 3), (5, 9)])


def make_graph(model):
    users, items = EDGES.T
    pairs = Pairs(users, items, np.searchsorted(users, np.arange(USERS + 1)))
    return model.graph.prepare(None, pairs, ITEMS + 1, model.graph_settings)


@pytest.mark.parametrize("encoder", ["ultragcn", "lightgcn"])
def test_the_user_table_does_not_matter_for_recommendations(encoder):
    model = make_model(encoder=encoder)
    params, graph = make_params(model), make_graph(model)

    @partial(jax.jit, static_argnames="by_graph")
    def query(params, graph, batch, by_graph):
        source, items = Create.query_tables(model, params, graph, by_graph=by_graph)
        found = Create.query_vectors(model, params, source, batch, by_graph=by_graph)
        return found, items

    other = params | {"user_table": params["user_table"] + 1}
    vectors, items = query(params, graph, BATCH, by_graph=False)
    again, items_again = query(other, graph, BATCH, by_graph=False)
    np.testing.assert_array_equal(vectors, again)
    np.testing.assert_array_equal(items, items_again)
    np.testing.assert_array_equal(items, params["item_table"])
    by_graph, _ = query(params, graph, BATCH, by_graph=True)
    changed, _ = query(other, graph, BATCH, by_graph=True)
    assert by_graph.shape == vectors.shape
    assert (by_graph != changed).any()  # whereas the graph's own scores need it
    found = jax.jit(partial(Create.graph_vectors, model))(params, graph)
    np.testing.assert_allclose(by_graph, found.users[BATCH.users], rtol=1e-6)


def test_groups_start_the_same_in_every_model():
    methods = "sasrec", "create", "ultragcn"

    @jax.jit
    def init(seed):
        return [make_model(method).init(seed) for method in methods]

    alone, joint, graph = init(3)
    assert set(alone) == {"item_table", "sequence"}
    assert set(joint) == {"item_table", "sequence", "user_table"}
    assert set(graph) == {"item_table", "user_table"}
    for part in (alone, graph):
        shared = {group: joint[group] for group in part}
        jax.tree.map(np.testing.assert_array_equal, part, shared)
    assert not joint["item_table"][0].any()
    other = init(4)[1]
    assert (other["item_table"][1:] != joint["item_table"][1:]).all()


def alignment(model, params, graph, batch):
    vectors = Create.graph_vectors(model, params, graph)
    states = Create.encode(model, params, params["item_table"], batch)
    return model.align.with_graph(params, states, vectors, batch)


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", ["barlow_twins", "infonce"])
@pytest.mark.parametrize("stop_grad", ["none", "global", "local"])
def test_the_alignment_gradient_reaches_the_encoders_it_should(kind, stop_grad):
    model = make_model(kind=kind, stop_grad=stop_grad)
    params, graph = make_params(model), make_graph(model)
    slopes = jax.jit(jax.grad(partial(alignment, model)))(params, graph, BATCH)
    reached = {group for group in slopes if largest(slopes[group]) > 1e-6}
    expected = {
        "none": {"item_table", "sequence", "user_table"},
        "global": {"item_table", "sequence"},  # through the transformer's input
        "local": {"user_table"},
    }[stop_grad]
    assert reached == expected
    for group in set(slopes) - expected:
        assert largest(slopes[group]) == 0
    if "user_table" in expected:
        # Users of the batch move; user 3 is not in it.
        assert (jnp.abs(slopes["user_table"]).max(1) > 0).tolist() == [
            *[True, True, True],
            *[False, True, True],
        ]


@pytest.mark.parametrize("source", ["propagated", "ego"])
def test_propagated_users_pass_the_alignment_gradient_to_items(source):
    model = make_model(encoder="lightgcn", stop_grad="local", user_source=source)
    params, graph = make_params(model), make_graph(model)
    slopes = jax.jit(jax.grad(partial(alignment, model)))(params, graph, BATCH)
    assert largest(slopes["user_table"]) > 1e-6
    assert (largest(slopes["item_table"]) > 1e-6) == (source == "propagated")


def test_projectors_and_unit_rows_are_applied_before_the_loss():
    model = make_model(projector_dims=[5, 4], l2_normalize=True)
    params, graph = make_params(model), make_graph(model)
    found = jax.jit(partial(alignment, model))(params, graph, BATCH)
    states = states_of(model, params)

    def head(name, x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        for n in range(2):
            layer = params["projectors"][name][f"dense_{n}"]
            x = (np.maximum(x, 0) if n else x) @ layer["kernel"] + layer["bias"]
        return x

    expected = barlow_twins(
        head("local", states[BATCH.last]),
        head("global", params["user_table"][BATCH.users]),
        BATCH.weights,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_two_views_pass_one_projector():
    """They are states of one encoder: equal views are perfectly aligned."""
    model = make_model("bt_sr", encoder="none", projector_dims=[5, 4])
    params = make_params(model)
    assert list(params["projectors"]) == ["local"]
    states = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    ends = SimpleNamespace(last=np.arange(64), weights=np.ones(64, np.float32))
    loss = partial(model.align.with_views, params)
    found = loss(states, states[::-1], ends, ends)
    np.testing.assert_allclose(found, loss(states[::-1], states, ends, ends), rtol=1e-5)
    layers = params["projectors"]["local"].values()
    x = states / np.linalg.norm(states, axis=1, keepdims=True)  # bt_sr has unit states
    for n, layer in enumerate(layers):
        x = (np.maximum(x, 0) if n else x) @ layer["kernel"] + layer["bias"]
    expected = barlow_twins(x, x, ends.weights)
    np.testing.assert_allclose(loss(states, states, ends, ends), expected, rtol=1e-4)


def owners_of_slots():
    """Who owns each slot of BATCH, by hand; None = empty."""
    rows = [
        [0, 0, 0, 0, 4, 4, None],
        [5, 1, 1, 1, 1, 1, None],
        [2, 2, 2, None, None, None, None],
    ]
    return [owner for row in rows for owner in row]


def test_every_slot_knows_its_sequence():
    sequence = jax.jit(transformer.sequence_of_slot)(MIXED)
    users = MIXED.users[sequence].tolist()
    for found, owner in zip(users, owners_of_slots(), strict=True):
        assert owner is None or found == owner
    assert (MIXED.weights[sequence] == 1)[BATCH.segments.ravel() > 0].all()


def states_of(model, params):
    """[slots, D] of BATCH."""
    return jax.jit(partial(Create.encode, model))(params, params["item_table"], BATCH)


@pytest.mark.parametrize("positions", ["last", "all"])
def test_alignment_pairs_states_with_their_own_users(positions):
    model = make_model(positions=positions)
    params, graph = make_params(model), make_graph(model)
    found = jax.jit(partial(alignment, model))(params, graph, MIXED)
    owners = owners_of_slots()
    if positions == "all":
        slots = [slot for slot, owner in enumerate(owners) if owner is not None]
    else:
        slots = [3, 5, 7, 12, 16]
    states = states_of(model, params)[np.array(slots)]
    users = params["user_table"][np.array([owners[slot] for slot in slots])]
    expected = barlow_twins(states, users, jnp.ones(len(slots)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_item_sources_choose_the_tables():
    config = get_config()
    config.graph.encoder = "lightgcn"
    config.item_source.update(input="ego", output="propagated")
    model = build.make_model(config, USERS, ITEMS)
    params, propagated = {"item_table": 1}, 2
    assert Create.item_vectors(model, params, propagated) == (1, 2)
    config.item_source.update(input="propagated", output="ego")
    model = build.make_model(config, USERS, ITEMS)
    assert Create.item_vectors(model, params, propagated) == (2, 1)


def test_the_lightgcn_loss_is_bpr_on_propagated_and_decay_on_ego_vectors():
    model = make_model(encoder="lightgcn")
    params, graph = make_params(model), make_graph(model)
    u, i, j = np.array([0, 4, 5]), np.array([1, 3, 9]), np.array([6, 2, 11])
    weights = np.array([1, 1, 0], np.float32)
    batch = EdgeBatch(u, i, j, weights)
    vectors = jax.jit(partial(Create.graph_vectors, model))(params, graph)
    loss = jax.jit(partial(Create.global_loss, model))
    found = loss(params, vectors, batch, graph)
    users, items = map(np.asarray, vectors[:2])
    gap = (users[u] * items[i]).sum(1) - (users[u] * items[j]).sum(1)
    own_users, own_items = (
        np.asarray(params[name]) for name in ("user_table", "item_table")
    )
    norms = (own_users[u] ** 2 + own_items[i] ** 2 + own_items[j] ** 2).sum(1)
    expected = (np.log1p(np.exp(-gap)) + 1e-4 * 0.5 * norms)[:2].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_random_words_are_those_of_jax():
    key, size = jax.random.key(7), 3 * 5 * 4
    words = jax.jit(partial(transformer.random_words, shape=(3, 5, 4)))(key)
    counters = jnp.concatenate([jnp.arange(size), jnp.zeros(size)]).astype(jnp.uint32)
    theirs = threefry_2x32(jax.random.key_data(key), counters)[:size]
    np.testing.assert_array_equal(words.reshape(-1), theirs)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_zeros_its_share_and_keeps_the_mean(rate):
    module, x = transformer.Dropout(rate), jnp.full((7, 50, 301), 2.0)

    def drop(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(module.apply({}, x, True, rngs=rngs))

    first, other = drop(0), drop(1)
    spread = (rate * (1 - rate) / x.size) ** 0.5
    for values in (first, other):
        assert abs((values == 0).mean() - rate) < 4 * spread
        np.testing.assert_allclose(values[values > 0], 2 / (1 - rate), rtol=2e-5)
    # Neighbours and two draws know nothing of each other.
    both = (first == 0).reshape(-1)
    for pair in ((both[:-1], both[1:]), (both, (other == 0).reshape(-1))):
        assert abs(np.corrcoef(*pair)[0, 1]) < 4 / x.size**0.5
    np.testing.assert_array_equal(module.apply({}, x, False), x)
    np.testing.assert_array_equal(transformer.Dropout(0.0).apply({}, x, True), x)


def test_causal_attention_in_blocks_is_causal_attention(monkeypatch):
    segments = jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11])
    x = jax.random.normal(jax.random.key(0), (2, 11, 8))
    mask = transformer.segment_mask(segments, causal=True)
    whole = transformer.Attention(2, 0.0)
    blocks = transformer.Attention(2, 0.0, causal=True)
    params = jax.jit(lambda: whole.init(jax.random.key(1), x, x, mask, False))()
    expected = jax.jit(lambda: whole.apply(params, x, x, mask, False))()
    for size in (1, 3, 5):
        monkeypatch.setattr(transformer, "QUERY_BLOCK", size)
        found = jax.jit(lambda: blocks.apply(params, x, x, mask, False))()
        np.testing.assert_allclose(found, expected, atol=1e-6)
