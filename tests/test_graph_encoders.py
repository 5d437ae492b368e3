"""The signed graph and the hypergraph of CREATE++ against loops in NumPy."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import test_steps
from create_jax.configs.common import get_config
from jax import lax
from test_models import in_float64

from create_jax import build, steps
from create_jax.data.graph import make_pairs
from create_jax.data.interactions import Interactions
from create_jax.errors import InputError
from create_jax.models import hypergraph, signed
from create_jax.models.alignment import Alignment
from create_jax.models.graph_encoder import Draw, Shapes, Vectors
from create_jax.models.signed import SignedBatch
from create_jax.parallel import DATA

USERS, ROWS, D = 5, 8, 3
NAN = float("nan")


def make_log(rows):
    """Of (user, item, time, rating), already in order."""
    users, items, times, ratings = zip(*rows, strict=True)
    return Interactions(
        np.array(users, np.int32),
        np.array(items, np.int32),
        np.array(times, np.int64),
        pl.Series([str(u) for u in range(USERS)]),
        pl.Series([str(i) for i in range(1, ROWS)]),
        np.array(ratings, np.float32),
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def minus_log_sigmoid(x):
    return -np.log(1 / (1 + np.exp(-x)))


def differences(loss, params, step=1e-6):
    """The gradient of a NumPy function by central differences, in float64."""
    leaves, structure = jax.tree.flatten(params)
    leaves = [np.array(x, np.float64) for x in leaves]
    slopes = [np.zeros_like(x) for x in leaves]
    for x, slope in zip(leaves, slopes, strict=True):
        for place in np.ndindex(x.shape):
            value, ends = x[place], []
            for x[place] in (value + step, value - step):
                ends.append(loss(structure.unflatten(leaves)))
            slope[place] = (ends[0] - ends[1]) / (2 * step)
            x[place] = value
    return structure.unflatten(slopes)


def check_slopes(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(close, tolerance=5e-6), found, expected)
    for slope in jax.tree.leaves(expected):  # nothing is compared for nothing
        assert np.abs(slope).max() > 1e-3


TABLES = {"user_table": normal(0, USERS, D), "item_table": normal(1, ROWS, D)}

# --- signed graph ---------------------------------------------------------------------

# A pair's last rating counts: user 0 likes item 2, and says nothing of item 6. User 2
# has no dislike, user 3 no like, user 4 neither; items 4, 6, 7 (and 0) are in no graph.
RATED = [
    *[(0, 2, 0, 1.0), (0, 1, 1, 5.0), (0, 6, 2, 5.0), (0, 2, 3, 4.0), (0, 3, 4, 2.0)],
    *[(0, 6, 5, NAN), (0, 5, 6, 1.0), (1, 1, 0, 4.0), (1, 2, 1, 3.5)],
    *[(2, 1, 0, 5.0), (2, 3, 1, 4.5), (3, 2, 0, 1.0), (3, 5, 1, 3.0), (4, 5, 0, NAN)],
]
LIKED = {(0, 1), (0, 2), (1, 1), (2, 1), (2, 3)}
DISLIKED = {(0, 3), (0, 5), (1, 2), (3, 2), (3, 5)}
SIGNED = {
    "layers": 2,
    "liked_from": 4.0,
    "averse_weight": 0.7,
    "contrastive": 0.4,
    "temperature": 0.5,
    "reduce": "mean",
}
SIGNED_PARAMS = TABLES | {
    "graph": {
        "averse_users": normal(2, USERS, D),
        "averse_items": normal(3, ROWS, D),
        "epsilon": np.array([0.3, -0.2], np.float32),
    }
}
SIGNED_PAIRS = make_pairs(make_log(RATED))
# Users 2 have no dislike to draw; the last pair is filler.
BATCH = SignedBatch(
    users=np.array([0, 0, 1, 2, 2, 0]),
    items=np.array([1, 2, 1, 3, 1, 1]),
    negatives=np.array([7, 4, 3, 2, 6, 7]),
    weights=np.array([1, 1, 1, 1, 1, 0], np.float32),
    disliked=np.array([3, 5, 2, 5, 3, 5]),
    disliked_weights=np.array([1, 1, 1, 0, 0, 0], np.float32),
)


def signed_by_loops(params, layers):
    """(z of users, z of items, v of users, v of items)."""
    own, found = params["graph"], []
    for edges, users, items, epsilon in (
        (LIKED, params["user_table"], params["item_table"], own["epsilon"][0]),
        (DISLIKED, own["averse_users"], own["averse_items"], own["epsilon"][1]),
    ):
        near = [[] for _ in range(USERS + ROWS)]
        for u, i in edges:
            near[u].append(USERS + i)
            near[USERS + i].append(u)
        x = np.concatenate([users, items])
        all_layers = [x]
        for _ in range(layers):
            after = np.empty_like(x)
            for a, others in enumerate(near):
                after[a] = (1 + epsilon) / max(len(others), 1) * x[a]
                for b in others:
                    after[a] += x[b] / np.sqrt(len(others) * len(near[b]))
            x = after
            all_layers.append(x)
        mean = np.mean(all_layers, axis=0)
        found += [mean[:USERS], mean[USERS:]]
    return found


def signed_loss_by_loops(vectors, batch, options):
    z_users, z_items, v_users, v_items = vectors
    b, t = options["averse_weight"], options["temperature"]
    likes, dislikes, contrast = [], [], []
    for u, i, j, weight, averse, has in zip(*batch, strict=True):
        if weight:
            gap = z_users[u] @ z_items[i] - z_users[u] @ z_items[j]
            likes.append(minus_log_sigmoid(gap))
        if has:
            gap = v_users[u] @ v_items[j] - b * v_users[u] @ v_items[averse]
            dislikes.append(minus_log_sigmoid(gap))
            wanted = np.exp(z_users[u] @ z_items[i] / t)
            contrast.append(
                -np.log(wanted / (wanted + np.exp(v_users[u] @ v_items[averse] / t)))
            )
    total = np.mean(likes)
    if dislikes:
        total += np.mean(dislikes) + options["contrastive"] * np.mean(contrast)
    return total * len(likes) if options["reduce"] == "sum" else total


def prepare_signed(pairs=SIGNED_PAIRS, shards=1):
    return signed.prepare(None, pairs, ROWS, SIGNED, shards)


def pairs_in(pairs):
    return set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))


def test_the_last_rating_of_a_repeated_pair_counts():
    users, items, _, ratings = SIGNED_PAIRS
    keys = zip(users.tolist(), items.tolist(), strict=True)
    found = dict(zip(keys, ratings.tolist(), strict=True))
    expected = {(u, i): rating for u, i, _, rating in RATED}  # the last one stays
    assert list(found) == sorted(expected)
    assert [str(found[pair]) for pair in expected] == list(map(str, expected.values()))
    assert make_pairs(make_log(RATED)._replace(ratings=None)).ratings is None


def test_ratings_split_at_liked_from_and_missing_ones_are_in_neither():
    liked, disliked = signed.split_pairs(SIGNED_PAIRS, 4.0)
    assert (pairs_in(liked), pairs_in(disliked)) == (LIKED, DISLIKED)
    for part in (liked, disliked):
        owners = np.repeat(np.arange(USERS), np.diff(part.offsets))
        np.testing.assert_array_equal(part.users, owners)


@pytest.mark.parametrize("layers", [1, 3])
def test_signed_vectors_are_the_loop_over_neighbours(layers):
    encode = jax.jit(partial(signed.encode, settings={"layers": layers}))
    found = encode(SIGNED_PARAMS, prepare_signed())
    expected = signed_by_loops(in_float64(SIGNED_PARAMS), layers)
    jax.tree.map(close, tuple(found), tuple(expected))
    # Without neighbours nothing comes in: the mean of the powers of 1 + epsilon.
    share = np.mean([1.3**k for k in range(layers + 1)])
    close(found.items[7], share * TABLES["item_table"][7])


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_signed_loss_and_its_gradient_are_those_of_the_loop(reduce):
    options = SIGNED | {"reduce": reduce}

    def loss(params, graph):
        vectors = signed.encode(params, graph, options)
        return signed.loss(params, vectors, BATCH, graph, options)

    def by_loops(params):
        vectors = signed_by_loops(params, options["layers"])
        return signed_loss_by_loops(vectors, BATCH, options)

    value, slopes = jax.jit(jax.value_and_grad(loss))(SIGNED_PARAMS, prepare_signed())
    close(value, by_loops(in_float64(SIGNED_PARAMS)))
    check_slopes(slopes, differences(by_loops, SIGNED_PARAMS))


def test_each_weight_of_the_signed_loss_has_its_own_term():
    vectors = signed_by_loops(in_float64(SIGNED_PARAMS), 2)
    without = BATCH._replace(disliked_weights=np.zeros(6, np.float32))
    for batch, changes in (
        (BATCH, {"contrastive": 0.0}),
        (BATCH, {"averse_weight": 0.0}),
        (BATCH, {"temperature": 2.0}),
        (without, {}),  # no user has a dislike
    ):
        options = SIGNED | changes
        found = signed.loss({}, Vectors(*vectors), batch, None, options)
        close(found, signed_loss_by_loops(vectors, batch, options))


DRAW = Draw(6, 200, n_items=ROWS - 1, seed=0, epoch=0, joint=False, owners=None)


def check_signed_batch(batch):
    """Returns what was drawn: (user, liked), (user, disliked), (user, negative)."""
    drawn = set(), set(), set()
    for fields in zip(*(np.ravel(field).tolist() for field in batch), strict=True):
        u, i, j, weight, averse, has = fields
        if weight:
            drawn[0].add((u, i))
            drawn[2].add((u, j))
        if has:
            drawn[1].add((u, averse))
        else:
            assert not any((u, i) in DISLIKED for i in range(ROWS))
        assert weight in (0, 1) and has in (0, 1)
    assert drawn[0] <= LIKED and drawn[1] <= DISLIKED
    return drawn


def test_a_signed_batch_has_a_like_a_dislike_and_an_unobserved_item():
    batch = signed.batches(None, SIGNED_PAIRS, SIGNED, DRAW)
    assert all(field.shape == (6, 200) for field in batch)
    assert (batch.weights == 1).all()
    liked, disliked, negatives = check_signed_batch(batch)
    users = {u for u, _ in LIKED}
    observed = {row[:2] for row in RATED}  # rated, or not
    assert liked == LIKED
    assert disliked == {(u, i) for u, i in DISLIKED if u in users}
    every = {(u, i) for u in users for i in range(1, ROWS)}
    assert negatives == every - observed


def test_owners_without_a_like_have_no_pair_of_weight_one():
    owners = np.array([[0, 3, 4], [3, -1, -1], [2, 4, 3], [1, 0, -1]])
    draw = DRAW._replace(steps=4, joint=True, owners=owners)
    batch = signed.batches(None, SIGNED_PAIRS, SIGNED, draw)
    check_signed_batch(batch)
    for users, weights, allowed in zip(batch.users, batch.weights, owners, strict=True):
        assert set(users[weights > 0].tolist()) <= set(allowed.tolist())


def test_signed_batches_are_a_function_of_seed_and_epoch():
    def drawn(seed, epoch):
        draw = DRAW._replace(steps=3, size=8, seed=seed, epoch=epoch)
        batch = signed.batches(None, SIGNED_PAIRS, SIGNED, draw)
        return [field.tolist() for field in batch]

    first = drawn(0, 1)
    assert first == drawn(0, 1)
    for other in (drawn(0, 2), drawn(1, 1)):
        assert first[0] != other[0] and first[4] != other[4]


@pytest.mark.parametrize("shards", [1, 8])
def test_a_log_without_a_dislike_is_a_graph_of_likes(shards):
    pairs = make_pairs(make_log([row for row in RATED if not row[3] < 4.0]))
    batch = signed.batches(None, pairs, SIGNED, DRAW)
    assert (batch.disliked_weights == 0).all() and (batch.weights == 1).all()
    graph = prepare_signed(pairs, shards)
    encode = partial(signed.encode, settings=SIGNED)
    if shards == 1:
        found = encode(SIGNED_PARAMS, graph)
    else:
        found = split_by_vmap(encode, SIGNED_PARAMS, graph)
        found = jax.tree.map(lambda x: x[0], found)
    expected = signed_by_loops(in_float64(SIGNED_PARAMS), 2)
    close(found.users, expected[0])
    share = np.mean([0.8**k for k in range(3)])
    close(found.averse_users, share * SIGNED_PARAMS["graph"]["averse_users"])


def test_disinterest_starts_in_tables_of_its_own():
    shapes = Shapes(400, 300, 8, user_std=0.5, item_std=0.02)
    own = signed.init(jax.random.key(0), shapes, SIGNED)
    assert own["averse_users"].shape == (400, 8)
    assert own["averse_items"].shape == (300, 8)
    np.testing.assert_allclose(own["averse_users"].std(), 0.5, rtol=0.1)
    np.testing.assert_allclose(own["averse_items"].std(), 0.02, rtol=0.1)
    assert own["epsilon"].tolist() == [0, 0]


# --- hypergraph -----------------------------------------------------------------------

START, HOUR = 1_000_123, 3600
# User 0 meets item 2 twice in its first hour and item 1 in its first two; user 3 has no
# row; items 0, 6 and 7 neither.
TIMED = [
    *[(0, 1, 5), (0, 2, 60), (0, 2, 90), (0, 4, HOUR - 1), (0, 1, HOUR), (0, 3, 5000)],
    *[(1, 1, 0), (1, 5, 2 * HOUR + 1), (1, 2, 3 * HOUR - 1)],
    *[(2, 5, 100), (2, 5, HOUR + 100), (2, 1, HOUR + 200)],
    *[(4, 3, 40 * HOUR), (4, 1, 40 * HOUR), (4, 4, 40 * HOUR + 1), (4, 4, 200 * HOUR)],
]
TIMED_LOG = make_log([(u, i, START + t, NAN) for u, i, t in TIMED])


def hyperedges(seconds):
    """{(user, window): its members}, items behind the users."""
    found = {}
    for user, item, time in TIMED:
        found.setdefault((user, time // seconds), {user}).add(USERS + item)
    return found


@pytest.mark.parametrize("hours, count", [(1, 8), (1.5, 6), (168, 5), (1000, 4)])
def test_a_hyperedge_is_a_user_and_its_items_in_a_window(hours, count):
    nodes, edges = hypergraph.incidence(TIMED_LOG, hours)
    milliseconds = TIMED_LOG._replace(times=TIMED_LOG.times * 1000, per_second=1000)
    for found, same in zip(
        hypergraph.incidence(milliseconds, hours), (nodes, edges), strict=True
    ):
        assert (found == same).all()
    expected = hyperedges(int(hours * HOUR)).values()
    assert len(expected) == count
    assert len(nodes) == len(edges) == sum(map(len, expected))  # each member once
    assert set(edges.tolist()) == set(range(count))
    found = [nodes[edges == e].tolist() for e in range(count)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


HYPER = {"layers": 2, "window_hours": 1.0, "l2": 0.3, "reduce": "mean"}
OWN = {
    "gcn": {},
    "gin": {"graph": {"epsilon": np.array([0.4, -0.3], np.float32)}},
    "gat": {"graph": {"attention": normal(4, 2, 2, D)}},
}


def hypergraph_by_loops(params, convolution, layers):
    edges = [sorted(members) for members in hyperedges(HOUR).values()]
    around = [[e for e, m in enumerate(edges) if i in m] for i in range(USERS + ROWS)]
    x = np.concatenate([params["user_table"], params["item_table"]])
    all_layers = [x]
    for layer in range(layers):
        h = [np.mean([x[i] for i in members], axis=0) for members in edges]
        after = np.zeros_like(x)
        for i, mine in enumerate(around):
            if convolution == "gcn":
                for e in mine:
                    d_e = np.mean([len(around[j]) for j in edges[e]])
                    after[i] += h[e] / np.sqrt(len(mine) * d_e)
            elif convolution == "gin":
                after[i] = (1 + params["graph"]["epsilon"][layer]) * x[i]
                for e in mine:
                    after[i] += h[e]
            elif mine:
                a = params["graph"]["attention"][layer].ravel()
                scores = [a @ np.concatenate([x[i], h[e]]) for e in mine]
                weights = [np.exp(s if s > 0 else 0.2 * s) for s in scores]
                for e, weight in zip(mine, weights, strict=True):
                    after[i] += weight / sum(weights) * h[e]
        x = after
        all_layers.append(x)
    mean = np.mean(all_layers, axis=0)
    return mean[:USERS], mean[USERS:]


def bpr_by_loops(params, vectors, batch, options):
    """BPR, and the L2 norm of the tables' own rows."""
    (users, items), found = vectors, []
    for u, i, j, weight in zip(*batch[:4], strict=True):
        if weight:
            found.append(minus_log_sigmoid(users[u] @ items[i] - users[u] @ items[j]))
            ego = params["user_table"][u], *params["item_table"][[i, j]]
            found[-1] += options["l2"] * 0.5 * sum(x @ x for x in ego)
    return np.sum(found) if options["reduce"] == "sum" else np.mean(found)


@pytest.mark.parametrize("convolution", ["gcn", "gin", "gat"])
def test_hypergraph_vectors_loss_and_gradient_are_those_of_loops(convolution):
    options = HYPER | {"convolution": convolution}
    params = TABLES | OWN[convolution]
    graph = hypergraph.prepare(TIMED_LOG, None, ROWS, options)

    def loss(params, graph):
        vectors = hypergraph.encode(params, graph, options)
        return hypergraph.loss(params, vectors, BATCH, graph, options), vectors

    def vectors_by_loops(params):
        return hypergraph_by_loops(params, convolution, options["layers"])

    def by_loops(params):
        return bpr_by_loops(params, vectors_by_loops(params), BATCH, options)

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, vectors), slopes = slope(params, graph)
    expected = vectors_by_loops(in_float64(params))
    assert vectors.averse_users is None
    jax.tree.map(close, tuple(vectors[:2]), expected)
    close(value, by_loops(in_float64(params)))
    check_slopes(slopes, differences(by_loops, params))


@pytest.mark.parametrize("convolution", ["gcn", "gin", "gat"])
def test_the_parameters_of_a_hypergraph_have_the_shapes_it_reads(convolution):
    shapes = Shapes(USERS, ROWS, D, 0.02, 0.02)
    options = HYPER | {"convolution": convolution}
    own = hypergraph.init(jax.random.key(0), shapes, options)
    expected = OWN[convolution].get("graph", {})
    assert {k: v.shape for k, v in own.items()} == {
        k: v.shape for k, v in expected.items()
    }


# --- devices --------------------------------------------------------------------------


def split_by_vmap(function, params, graph):
    """A function of (params, graph, axis_name) on eight parts of a graph."""
    axes = jax.tree.map(lambda s: 0 if len(s) else None, steps.graph_specs(graph))
    flat, structure = jax.tree.flatten(graph)
    axes = structure.flatten_up_to(axes)
    cut = [
        x if axis is None else x[:, None] for x, axis in zip(flat, axes, strict=True)
    ]
    mapped = jax.vmap(
        partial(function, axis_name=DATA),
        in_axes=(None, structure.unflatten(axes)),
        axis_name=DATA,
    )
    return jax.jit(mapped)(params, structure.unflatten(cut))


@pytest.mark.parametrize("convolution", ["gcn", "gin", "gat"])
def test_a_hypergraph_in_eight_parts_has_the_gradient_of_one(convolution):
    options = HYPER | {"convolution": convolution}
    params = TABLES | OWN[convolution]

    def slopes(params, graph, axis_name=None):
        def loss(params):
            vectors = hypergraph.encode(params, graph, options, axis_name)
            return sum(jnp.sum(jnp.sin(x)) for x in vectors[:2])

        value, found = jax.value_and_grad(loss)(params)
        return value, found if axis_name is None else lax.pmean(found, axis_name)

    whole, parts = (
        hypergraph.prepare(TIMED_LOG, None, ROWS, options, shards) for shards in (1, 8)
    )
    expected = jax.jit(slopes)(params, whole)
    found = split_by_vmap(slopes, params, parts)
    jax.tree.map(lambda x, y: close(x, np.broadcast_to(y, x.shape)), found, expected)


def timed_and_rated():
    """The log of test_steps, over ten days and with ratings, some missing."""
    log = test_steps.LOG
    rng = np.random.default_rng(5)
    ratings = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0, NAN], len(log.users))
    times = np.sort(rng.integers(0, 240 * HOUR, len(log.users)))
    return log._replace(ratings=ratings.astype(np.float32), times=times)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    "method, encoder, changes",
    [
        ("create_pone", "signed", {}),
        ("create_uni", "hypergraph", {"graph.hypergraph.convolution": "gat"}),
    ],
)
def test_eight_devices_give_the_step_of_one(monkeypatch, method, encoder, changes):
    monkeypatch.setattr(test_steps, "LOG", timed_and_rated())
    changes = changes | {"graph.hypergraph.window_hours": 24.0}
    case = test_steps.Case(encoder, method=method, **changes)
    if encoder == "signed":
        has = case.batch.edges.disliked_weights.reshape(8, -1).sum(1)
        assert has.min() < has.max()
    state, sums = test_steps.by_compiled_phase(case)
    found = sums, test_steps.gradients(state)
    groups = "item_table", "user_table", "sequence", "graph"
    test_steps.same(found, case.on_one_device(), groups)


# --- alignment ------------------------------------------------------------------------


def test_a_signed_graph_adds_all_squared_correlations_with_disinterest():
    config = get_config("create_pone")
    config.align.orthogonality = 0.6
    align = Alignment.from_config(config.align)
    states, tables = normal(6, 20, D), (normal(7, 9, D), normal(8, ROWS, D))
    averse = normal(9, 9, D)
    users = np.array([3, 0, 8, 5, 1, 2])
    last = np.array([2, 5, 9, 12, 19, 0])
    weights = np.array([1, 1, 1, 1, 1, 0], np.float32)
    batch = SimpleNamespace(users=users, last=last, weights=weights)
    loss = partial(align.with_graph, {"user_table": tables[0]}, states)
    plain = loss(Vectors(*tables), batch)
    both = loss(Vectors(*tables, jnp.asarray(averse), tables[1]), batch)
    views = []
    for x in (states[last[:5]], averse[users[:5]]):
        x = x.astype(np.float64)
        views.append((x - x.mean(0)) / x.std(0))
    squares = 0.0
    for i in range(D):
        for j in range(D):
            squares += np.mean(views[0][:, i] * views[1][:, j]) ** 2
    assert squares > 0.1
    close(both - plain, 0.6 / D * squares, 1e-4)


# --- settings -------------------------------------------------------------------------


def configured(method, **changes):
    config = get_config(method)
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(keys)
    return config


def refusal(check, *arguments):
    with pytest.raises(InputError) as caught:
        check(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_propagated_items_need_an_encoder_that_propagates():
    both = dict(item_source__input="propagated", item_source__output="propagated")
    for encoder in ("signed", "hypergraph", "lightgcn"):
        build.check(configured("create", graph__encoder=encoder, **both))
    for encoder in ("ultragcn", "none"):
        config = configured("create", graph__encoder=encoder, **both)
        assert "item_source is 'propagated'" in refusal(build.check, config)
    alone = configured("create", graph__encoder="ultragcn", **both)
    alone.item_source.input = "ego"
    assert "item_source is 'propagated'" in refusal(build.check, alone)
    alone.item_source.output = "ego"
    build.check(alone)


@pytest.mark.parametrize("method", ["create_pone", "create_uni"])
def test_both_of_the_followup_s_methods_propagate(method):
    config = configured(method)
    build.check(config)
    assert config.item_source.to_dict() == {
        "input": "propagated",
        "output": "propagated",
    }


RATED_LOG = make_log(RATED)  # from 1 to 5, some missing


@pytest.mark.parametrize("method", ["create_pone", "signed"])
def test_the_signed_graph_needs_ratings_on_both_sides(method):
    config = configured(method)
    build.check_log(config, RATED_LOG)
    text = refusal(build.check_log, config, RATED_LOG._replace(ratings=None))
    assert "found no ratings in the log; the signed encoder needs likes" in text
    for liked_from in (1.5, 5.0):
        config.graph.signed.liked_from = liked_from
        build.check_log(config, RATED_LOG)
    for liked_from in (0.5, 1.0, 5.5):
        config.graph.signed.liked_from = liked_from
        text = refusal(build.check_log, config, RATED_LOG)
        assert f"config.graph.signed.liked_from is {liked_from}" in text
        assert "above 1 and at most 5" in text


def test_an_encoder_of_ones_own_has_its_own_idea_of_a_like(monkeypatch):
    """On a log of 0 and 1, from 4 on would be refused."""
    rated = SimpleNamespace(NEEDS=("ratings",))
    monkeypatch.setattr(build, "graph_module", lambda config: rated)
    config = configured("create")
    config.graph.encoder = "mine.taste"
    log = RATED_LOG._replace(ratings=np.clip(RATED_LOG.ratings - 3, 0, 1))
    build.check_log(config, log)
    with config.unlocked():
        config.graph.taste = {"liked_from": 4.0}
    text = refusal(build.check_log, config, log)
    assert (
        "config.graph.taste.liked_from is 4.0; expected above 0 and at most 1" in text
    )


@pytest.mark.parametrize("method", ["create", "create_uni", "lightgcn", "sasrec"])
def test_others_need_no_ratings(method):
    build.check_log(configured(method), RATED_LOG._replace(ratings=None))


def test_without_a_clock_only_the_order_is_used():
    order = dict(data__table__has_clock=False)
    alone = order | dict(split__kind="leave_one_out")
    for method in ("lightgcn", "create", "create_pone", "sasrec", "bt_sr"):
        build.check(configured(method, **alone))
        text = refusal(build.check, configured(method, **order))
        assert "has_clock is False, but split.kind=global_temporal needs" in text
    for method in ("create_uni", "hypergraph"):
        text = refusal(build.check, configured(method, **alone))
        assert "has_clock is False, but the hypergraph encoder needs" in text
