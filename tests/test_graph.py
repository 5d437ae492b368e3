"""Graph encoders against dense matrices and loops; the batches that feed them."""

from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import polars as pl
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from test_packing import peak_of

from create_jax import parallel, steps
from create_jax.data import graph as graphs
from create_jax.data.graph import (
    EdgeBatch,
    Pairs,
    graph_rows,
    make_pairs,
    shuffled_pass,
    uniform_users,
)
from create_jax.data.interactions import Interactions
from create_jax.models import lightgcn, ultragcn
from create_jax.models.graph_encoder import Draw, Vectors
from create_jax.models.propagation import Matrix, lay_out, product
from create_jax.parallel import DATA

USERS, ROWS, D = 5, 8, 3
# User 3 and items 0 (padding), 6 and 7 have no edges; user 4 has one; 13 pairs.
EDGES = np.array(
    [(0, 1), (0, 2), (0, 3), (0, 5), (1, 1), (1, 2), (1, 4)]
    + [(2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (4, 5)]
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# --- LightGCN -------------------------------------------------------------------------


def dense_adjacency():
    """A~ = D^-1/2 [[0, R], [R^T, 0]] D^-1/2, zero where a node has no edge."""
    ratings = np.zeros((USERS, ROWS))
    ratings[EDGES[:, 0], EDGES[:, 1]] = 1
    a = np.block(
        [
            [np.zeros((USERS, USERS)), ratings],
            [ratings.T, np.zeros((ROWS, ROWS))],
        ]
    )
    degree = a.sum(0)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return scale[:, None] * a * scale


def dense_encode(tables, layers):
    """Mean of A~^k x for k = 0..K."""
    a, x = dense_adjacency(), jnp.concatenate(tables)
    powers = [np.linalg.matrix_power(a, k) for k in range(layers + 1)]
    return (sum(powers) / (layers + 1)).astype(np.float32) @ x


def some_loss(encoded):
    """Not linear, and different for every number of the output."""
    weights = normal(9, USERS + ROWS, D)
    return jnp.sum(weights * jnp.tanh(encoded)) + jnp.sum(encoded**2)


def as_params(tables):
    return dict(zip(("user_table", "item_table"), tables, strict=True))


def sparse_loss(tables, graph, layers, axis_name=None):
    vectors = lightgcn.encode(as_params(tables), graph, {"layers": layers}, axis_name)
    return some_loss(jnp.concatenate(vectors[:2]))


def pairs_of_edges():
    users, items = EDGES.T
    return Pairs(users, items, np.searchsorted(users, np.arange(USERS + 1)))


def prepare_lightgcn(shards=1):
    return lightgcn.prepare(None, pairs_of_edges(), ROWS, {}, shards)


TABLES = normal(0, USERS, D), normal(1, ROWS, D)


@pytest.fixture(scope="module")
def dense():
    slope = jax.jit(jax.value_and_grad(lambda t: some_loss(dense_encode(t, 3))))
    return slope(TABLES)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_lightgcn_is_the_mean_of_dense_matrix_powers(layers):
    encode = jax.jit(partial(lightgcn.encode, settings={"layers": layers}))
    users, items = encode(as_params(TABLES), prepare_lightgcn())[:2]
    assert (users.shape, items.shape) == ((USERS, D), (ROWS, D))
    close(jnp.concatenate([users, items]), dense_encode(TABLES, layers))
    # Nodes without edges keep their share of layer 0, and nothing else.
    close(users[3], TABLES[0][3] / (layers + 1))
    close(items[6], TABLES[1][6] / (layers + 1))


def test_the_adjacency_is_a_jraph_graph_of_both_directions():
    graph = lightgcn.adjacency(*EDGES.T, USERS, ROWS)
    dense = np.zeros((USERS + ROWS, USERS + ROWS))
    dense[graph.receivers, graph.senders] = graph.edges
    close(dense, dense_adjacency())
    assert graph.n_node.tolist() == [13] and graph.n_edge.tolist() == [26]
    x = jnp.concatenate(TABLES)
    messages = graph.edges[:, None] * x[graph.senders]
    expected = jraph.segment_sum(messages, graph.receivers, USERS + ROWS)
    close(product(x, prepare_lightgcn()), expected)


def test_the_lightgcn_gradient_is_autodiff_of_the_dense_one(dense):
    slope = jax.jit(jax.value_and_grad(partial(sparse_loss, layers=3), argnums=0))
    value, slopes = slope(TABLES, prepare_lightgcn())
    close(value, dense[0])
    for found, expected in zip(slopes, dense[1], strict=True):
        close(found, expected, 1e-5)


def on_each_device(tables, graph):
    value, slopes = jax.value_and_grad(sparse_loss)(tables, graph, 3, DATA)
    return value, lax.pmean(slopes, DATA)


def test_edges_split_by_vmap_give_the_dense_values_and_gradients(dense):
    parts = jax.tree.map(lambda x: x[:, None], prepare_lightgcn(8))
    mapped = jax.vmap(on_each_device, in_axes=(None, 0), axis_name=DATA)
    values, slopes = jax.jit(mapped)(TABLES, parts)
    close(values, np.full(8, dense[0]), 1e-5)
    for found, expected in zip(slopes, dense[1], strict=True):
        close(found, np.broadcast_to(expected, found.shape), 1e-5)


def test_edges_split_over_devices_give_the_dense_values_and_gradients(dense):
    mesh = parallel.make_mesh()
    assert mesh.size == 8
    graph = prepare_lightgcn(8)
    specs = steps.graph_specs(graph)
    placed = parallel.place(mesh, graph, specs)
    assert placed.rows.place.sharding.shard_shape((8, 13)) == (1, 13)
    mapped = parallel.compile_step(on_each_device, mesh, (P(), specs), (P(), P()))
    value, slopes = mapped(TABLES, placed)
    close(value, dense[0], 1e-5)
    for found, expected in zip(slopes, dense[1], strict=True):
        close(found, expected, 1e-5)


# --- sparse products ------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_product_and_its_gradient_are_those_of_the_dense_matrix(symmetric, shards):
    """Rows of 0 to 700 terms: of no block, of several, and sums of sums of sums."""
    rng = np.random.default_rng(2)
    n, m = (900, 900) if symmetric else (40, 900)
    dense = np.zeros((n, m), np.float32)
    for row, terms in enumerate([0, 700, 1, 2, 3, 5, 16, 17, 33, 256, 257, 400]):
        dense[row, rng.permutation(m)[:terms]] = rng.normal(size=terms)
    if symmetric:
        dense += dense.T
    receivers, senders = np.nonzero(dense)
    graph = jraph.GraphsTuple(
        *(None, dense[receivers, senders], receivers, senders, None, None, None)
    )
    turned = graph._replace(senders=receivers, receivers=senders)
    columns = None if symmetric else lay_out(turned, m, shards)
    matrix = Matrix(lay_out(graph, n, shards), columns)
    assert len(matrix.rows.levels) == 3
    x, weights = normal(3, m, D), normal(4, n, D)

    def loss(x, matrix, axis_name=None):
        found = product(x, matrix, axis_name)
        return jnp.sum(weights * jnp.tanh(found)), found

    slope = jax.value_and_grad(loss, has_aux=True)
    if shards == 1:
        (_, found), slopes = jax.jit(slope)(x, matrix)
    else:

        def own(x, matrix):
            value, slopes = slope(x, matrix, DATA)
            return value, lax.pmean(slopes, DATA)

        parts = jax.tree.map(lambda x: x[:, None], matrix)
        mapped = jax.jit(jax.vmap(own, in_axes=(None, 0), axis_name=DATA))
        (_, found), slopes = jax.tree.map(lambda x: x[0], mapped(x, parts))
    exact = dense.astype(np.float64) @ x
    close(found, exact, 2e-5)
    close(slopes, dense.T @ (weights / np.cosh(exact) ** 2), 2e-5)


# --- UltraGCN -------------------------------------------------------------------------


def prepare_ultragcn(neighbours):
    settings = {"neighbours": neighbours}
    return ultragcn.prepare(None, pairs_of_edges(), ROWS, settings)


def test_beta_is_the_paper_formula_and_zero_without_edges():
    constraints = prepare_ultragcn(3)
    d_u = np.bincount(EDGES[:, 0], minlength=USERS)
    d_i = np.bincount(EDGES[:, 1], minlength=ROWS)
    beta = np.outer(constraints.user_factor, constraints.item_factor)
    for u in range(USERS):
        for i in range(ROWS):
            known = d_u[u] and np.sqrt((d_u[u] + 1) / (d_i[i] + 1)) / d_u[u]
            close(beta[u, i], known)
    assert constraints.user_factor[3] == 0


@pytest.mark.parametrize("n_neighbours", [2, 10])
def test_omega_and_neighbours_are_the_loop_of_the_published_code(n_neighbours):
    constraints = prepare_ultragcn(n_neighbours)
    ratings = np.zeros((USERS, ROWS))
    ratings[EDGES[:, 0], EDGES[:, 1]] = 1
    together = ratings.T @ ratings  # with its diagonal
    g = together.sum(1)
    assert constraints.omega.shape == (ROWS, n_neighbours)
    for i in range(ROWS):
        weights = {
            j: together[i, j] * np.sqrt(g[i] + 1) / g[i] / np.sqrt(g[j] + 1)
            for j in range(ROWS)
            if together[i, j]
        }
        # Equal weights in the order of the items (rounded: the code is in float32).
        ranked = sorted(weights, key=lambda j: (-round(weights[j], 5), j))
        ranked = ranked[:n_neighbours]
        expected = [weights[j] for j in ranked]
        count = len(ranked)
        assert constraints.neighbours[i, :count].tolist() == ranked
        close(constraints.omega[i, :count], expected)
        assert not constraints.omega[i, count:].any()
        assert not constraints.neighbours[i, count:].any()
    assert constraints.neighbours[4, 0] == 4  # mostly an item's own first neighbour


def whole_best_neighbours(pairs, n_rows, k):
    """The same from all of R^T R at once, sorted by weight and then by id."""
    ratings = np.zeros((len(pairs.offsets) - 1, n_rows), np.float32)
    ratings[pairs.users, pairs.items] = 1
    together = ratings.T @ ratings
    g = together.sum(1)
    neighbours, omega = np.zeros((n_rows, k), np.int32), np.zeros((n_rows, k), "f")
    for i in np.flatnonzero(g):
        (others,) = np.nonzero(together[i])
        weight = together[i, others] * np.sqrt(g[i] + 1) / g[i] / np.sqrt(g[others] + 1)
        order = np.lexsort((others, -weight))[:k]
        neighbours[i, : len(order)] = others[order]
        omega[i, : len(order)] = weight[order]
    return neighbours, omega


def pairs_with_a_long_user(n_items, length, n_pairs, n_users=90):
    """Random pairs, and one user with `length` items that nearly all tie."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, n_users, n_pairs) * (n_items + 1)
    keys += np.minimum(rng.geometric(0.05, n_pairs), n_items)
    long = n_users * (n_items + 1) + rng.permutation(n_items)[:length] + 1
    users, items = np.divmod(np.unique(np.concatenate([keys, long])), n_items + 1)
    offsets = np.searchsorted(users, np.arange(n_users + 2))
    return Pairs(users.astype(np.int32), items.astype(np.int32), offsets)


@pytest.mark.parametrize("block", [1, 500, 10**6])
def test_neighbours_by_blocks_are_those_of_the_whole_to_the_bit(block, monkeypatch):
    monkeypatch.setattr(ultragcn, "BLOCK", block)
    pairs = pairs_with_a_long_user(120, 70, 400)
    for k in (1, 7, 200):
        found = ultragcn.best_neighbours(pairs, 121, k)
        for mine, expected in zip(
            found, whole_best_neighbours(pairs, 121, k), strict=True
        ):
            assert mine.dtype == expected.dtype
            np.testing.assert_array_equal(mine, expected)


def test_the_item_item_product_never_exists_whole(monkeypatch):
    """One user of 1,500 items makes 2.25 million entries, 20 MB; a block is 1 MB."""
    monkeypatch.setattr(ultragcn, "BLOCK", 2**15)
    pairs = pairs_with_a_long_user(2000, 1500, 3000)
    peak = peak_of(lambda: ultragcn.prepare(None, pairs, 2001, {"neighbours": 10}))
    assert peak < 4e6


WEIGHTS = dict(
    w1=0.3,
    w2=1.1,
    w3=0.2,
    w4=0.7,
    negative_weight=5.0,
    item_weight=0.4,
    norm_weight=0.05,
)
PAIRS = np.array([(0, 1), (0, 5), (1, 4), (2, 2), (4, 5), (1, 1)])
PAIR_WEIGHTS = np.array([1, 1, 1, 1, 0, 1], np.float32)
SHARED = np.array([[7, 1, 3, 3]])
OWN = np.random.default_rng(0).integers(1, ROWS, (6, 4))


def ultragcn_by_loops(tables, negatives, reduce):
    users, items = (np.asarray(table, np.float64) for table in tables)
    ratings = np.zeros((USERS, ROWS))
    ratings[EDGES[:, 0], EDGES[:, 1]] = 1
    d_u, d_i = ratings.sum(1), ratings.sum(0)
    constraints = prepare_ultragcn(3)

    def minus_log_sigmoid(score):
        return np.log1p(np.exp(-score))

    def beta(u, i):
        return np.sqrt((d_u[u] + 1) / (d_i[i] + 1)) / d_u[u]

    total = 0.0
    for p, (u, i) in enumerate(PAIRS):
        drawn = negatives[p % len(negatives)]
        pair = (0.3 + 1.1 * beta(u, i)) * minus_log_sigmoid(users[u] @ items[i])
        pair += 5.0 * np.mean(
            [
                (0.2 + 0.7 * beta(u, j)) * minus_log_sigmoid(-users[u] @ items[j])
                for j in drawn
            ]
        )
        for j, omega in zip(
            constraints.neighbours[i], constraints.omega[i], strict=True
        ):
            pair += 0.4 * omega * minus_log_sigmoid(users[u] @ items[j])
        total += PAIR_WEIGHTS[p] * pair
    total += 0.05 * 0.5 * ((users**2).sum() + (items**2).sum())
    return total if reduce == "sum" else total / PAIR_WEIGHTS.sum()


@pytest.mark.parametrize("negatives", [SHARED, OWN], ids=["shared", "per_pair"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_ultragcn_loss_is_the_loop_over_pairs(negatives, reduce):
    constraints = prepare_ultragcn(3)
    batch = EdgeBatch(*PAIRS.T, negatives, PAIR_WEIGHTS)
    loss = jax.jit(partial(ultragcn.loss, settings=WEIGHTS | {"reduce": reduce}))
    found = loss({}, Vectors(*TABLES), batch, constraints)
    close(found, ultragcn_by_loops(TABLES, negatives, reduce))


@pytest.mark.parametrize("rows", [8, 64, 65, 300])  # up to 32 * n, and above
def test_scores_of_negatives_are_the_products_however_they_are_found(rows):
    rng = np.random.default_rng(1)
    u, items = rng.normal(size=(6, 5)), rng.normal(size=(rows, 5))
    drawn = rng.integers(0, rows, (6, 2))

    def scores(u, items):
        return jnp.sum(jnp.sin(ultragcn.scores_of_negatives(u, items, drawn)))

    expected = np.einsum("pd,pnd->pn", u, items[drawn])
    close(
        ultragcn.scores_of_negatives(jnp.asarray(u), jnp.asarray(items), drawn),
        expected,
    )
    gradient = np.zeros_like(items)
    for p in range(6):
        for j, score in zip(drawn[p], expected[p], strict=True):
            gradient[j] += np.cos(score) * u[p]
    close(jax.grad(scores, 1)(jnp.asarray(u), jnp.asarray(items)), gradient)


# --- pairs ----------------------------------------------------------------------------


def make_log(*histories, n_items=9):
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    items = np.concatenate([np.array(h, np.int32) for h in histories])
    return Interactions(
        users.astype(np.int32),
        items,
        np.arange(len(items)),
        pl.Series([str(n) for n in range(len(histories))]),
        pl.Series([str(n) for n in range(n_items)]),
    )


@pytest.mark.parametrize(
    "choice, expected",
    [
        ({}, [{1, 2, 3, 5}, set(), {9}, {6, 7, 8}]),
        ({"last_n": 2}, [{1, 5}, set(), {9}, {6, 8}]),
        ({"last_n": 1}, [{1}, set(), {9}, {6}]),
        # ceil of a third of 5, 0, 1, 4 rows: 2, 0, 1, 2.
        ({"last_frac": 1 / 3}, [{1, 5}, set(), {9}, {6, 8}]),
        # ceil of 4.5, 0.9 and 3.6 rows: all of them.
        ({"last_frac": 0.9}, [{1, 2, 3, 5}, set(), {9}, {6, 7, 8}]),
        ({"last_n": 3, "last_frac": 0.01}, [{1}, set(), {9}, {6}]),
    ],
)
def test_pairs_are_distinct_and_of_the_newest_rows(choice, expected):
    # User 0 meets item 1 twice, user 3 meets item 8 twice.
    log = make_log([1, 3, 2, 5, 1], [], [9], [8, 7, 8, 6])
    pairs = make_pairs(graph_rows(log, **choice))
    found = [
        pairs.items[start:stop].tolist()
        for start, stop in zip(pairs.offsets[:-1], pairs.offsets[1:], strict=True)
    ]
    assert found == [sorted(items) for items in expected]
    owners = np.repeat(np.arange(4), [len(items) for items in expected])
    np.testing.assert_array_equal(pairs.users, owners)


@pytest.mark.parametrize("share, kept", [(0.55, 55), (0.551, 56), (0.07, 7), (0.1, 10)])
def test_a_share_of_rows_is_that_of_decimal_numbers(share, kept):
    log = make_log(list(range(1, 101)))
    assert len(graph_rows(log, last_frac=share).users) == kept


def pairs_of(*histories):
    return make_pairs(make_log(*histories))


# Users with 1, 8, 3 and no items of nine.
SOME = pairs_of([4], [1, 2, 3, 4, 5, 6, 7, 8], [2, 5, 9], [])
KNOWN = set(zip(SOME.users.tolist(), SOME.items.tolist(), strict=True))
DRAW = Draw(20, 300, n_items=9, seed=0, epoch=0, joint=False, owners=None)


def test_uniform_users_gives_own_positives_and_foreign_negatives():
    batch = uniform_users(SOME, DRAW)
    users, items, negatives, weights = map(np.ravel, batch)
    positives = set(zip(users.tolist(), items.tolist(), strict=True))
    assert positives == KNOWN  # all of them turn up, and no others
    not_known = {(u, j) for u in range(3) for j in range(1, 10)} - KNOWN
    assert set(zip(users.tolist(), negatives.tolist(), strict=True)) == not_known
    assert (weights == 1).all()
    assert batch.users.shape == batch.negatives.shape == (20, 300)


def test_uniform_users_draws_users_not_pairs():
    batch = uniform_users(SOME, DRAW)
    users = batch.users.ravel()
    # 2000 each of the 6000, whatever their number of items; deviation 37.
    np.testing.assert_allclose(np.bincount(users), 2000, atol=150)
    # And a user's items alike: 250 each of user 1's; deviation 15.
    counts = np.bincount(batch.items.ravel()[users == 1], minlength=9)[1:9]
    np.testing.assert_allclose(counts, 250, atol=75)
    # Negatives of user 0 are uniform over the eight items it lacks.
    counts = np.bincount(batch.negatives.ravel()[users == 0], minlength=10)[1:]
    assert counts[3] == 0
    np.testing.assert_allclose(np.delete(counts, 3), 250, atol=75)


def negatives_in_whole_passes(pairs, draw):
    """The second writing: as long as any is known, all are looked at again."""
    rng = np.random.default_rng((draw.seed, draw.epoch, 0x75696A))
    users = np.flatnonzero(np.diff(pairs.offsets))
    users = users[rng.integers(0, len(users), (draw.steps, draw.size))]
    rng.integers(0, np.diff(pairs.offsets)[users])
    known = np.zeros((len(pairs.offsets) - 1, draw.n_items + 1), bool)
    known[pairs.users, pairs.items] = True
    negatives = rng.integers(1, draw.n_items + 1, users.shape, dtype=np.int32)
    while (taken := known[users, negatives]).any():
        again = rng.integers(1, draw.n_items + 1, taken.sum(), dtype=np.int32)
        negatives[taken] = again
    return negatives


def test_negatives_are_drawn_again_in_the_order_of_whole_passes():
    for epoch in range(3):
        draw = DRAW._replace(epoch=epoch)
        expected = negatives_in_whole_passes(SOME, draw)
        np.testing.assert_array_equal(uniform_users(SOME, draw).negatives, expected)


@pytest.mark.parametrize("complete", [0, 1, 20])
def test_users_with_everything_cost_no_further_passes(complete, monkeypatch):
    """How many draws are looked up, for 20 users of whom some have all nine items."""
    looked_up = []

    def among(keys, wanted):
        looked_up.append(len(wanted))
        return found(keys, wanted)

    found = graphs._among
    monkeypatch.setattr(graphs, "_among", among)
    everything = list(range(1, 10))
    pairs = pairs_of(*[everything] * complete, *[[1, 2, 3]] * (20 - complete))
    batch = uniform_users(pairs, DRAW)
    assert ((batch.negatives >= 1) & (batch.negatives <= 9)).all()
    # 6,000 draws, of which a third is drawn again, and of these a third, ...
    assert sum(looked_up) < 1.6 * 6000 * (1 - complete / 20) + 1


def test_batch_users_are_the_only_ones_drawn():
    batch_users = np.array([[2, -1, 0, -1], [-1, 1, -1, -1], [0, 1, 2, -1]])
    draw = DRAW._replace(steps=3, size=200, joint=True, owners=batch_users)
    batch = uniform_users(SOME, draw)
    drawn = [np.bincount(users, minlength=4).tolist() for users in batch.users]
    assert [np.flatnonzero(counts).tolist() for counts in drawn] == [
        [0, 2],
        [1],
        [0, 1, 2],
    ]
    assert min(drawn[0][0], drawn[0][2]) > 70  # about 100 each
    pairs = zip(batch.users.ravel().tolist(), batch.items.ravel().tolist(), strict=True)
    assert set(pairs) <= KNOWN


@pytest.mark.parametrize("steps_, size", [(4, 3), (3, 5), (5, 4)])
def test_a_pass_has_each_pair_once_and_fills_up_with_weight_zero(steps_, size):
    batch = shuffled_pass(SOME, (1, 2), DRAW._replace(steps=steps_, size=size))
    real = batch.weights.ravel() == 1
    assert (batch.weights.ravel()[~real] == 0).all()
    pairs = np.stack([batch.users.ravel(), batch.items.ravel()], 1)[real].tolist()
    assert sorted(map(tuple, pairs)) == sorted(KNOWN)  # twelve, each once
    # Fillers lie at the ends of the batches, spread evenly over them.
    assert (np.diff(batch.weights, axis=1) <= 0).all()
    per_step = batch.weights.sum(1)
    assert per_step.max() - per_step.min() <= 1


def test_a_repeated_pass_starts_the_order_again():
    batch = shuffled_pass(SOME, (1, 2), DRAW._replace(steps=5, size=6, joint=True))
    assert (batch.weights == 1).all()
    pairs = zip(batch.users.ravel().tolist(), batch.items.ravel().tolist(), strict=True)
    counts = {}
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
    assert set(counts) == KNOWN
    assert set(counts.values()) <= {2, 3}  # 30 draws of 12 pairs


@pytest.mark.parametrize("shape", [(1, 50), (6, 7)])
def test_negatives_have_their_shape_and_cover_all_items(shape):
    batch = shuffled_pass(SOME, shape, DRAW._replace(steps=5, size=6, joint=True))
    assert batch.negatives[:].shape == batch.negatives.shape == (5, *shape)
    assert set(batch.negatives[:].ravel().tolist()) == set(range(1, 10))


def test_negatives_drawn_in_slices_are_those_drawn_at_once():
    shape = (7, 3, 5)  # odd counts: 32 bits of a draw wait for the next
    whole = np.random.default_rng(4).integers(1, 12, shape, dtype=np.int32)
    drawn = graphs.Drawn(np.random.default_rng(4), 11, shape)
    for steps_ in [slice(0, 2), slice(2, 3), slice(5, 7), slice(1, 4), slice(None)]:
        np.testing.assert_array_equal(drawn[steps_], whole[steps_])
    assert drawn[2:2].shape == (0, 3, 5)


def test_the_negatives_of_an_epoch_never_exist_whole():
    """4 million of them, 16 MB; of one step 80 kB."""

    def work():
        batch = shuffled_pass(SOME, (100, 200), DRAW._replace(steps=200, size=100))
        for step in range(200):
            assert batch.negatives[step : step + 1].shape == (1, 100, 200)

    assert peak_of(work) < 2e6


@pytest.mark.parametrize("draw", ["shuffled_pass", "uniform_users"])
def test_edge_batches_are_a_function_of_seed_and_epoch(draw):
    def users(seed, epoch):
        now = DRAW._replace(steps=3, size=4, seed=seed, epoch=epoch)
        if draw == "uniform_users":
            batch = uniform_users(SOME, now)
        else:
            batch = shuffled_pass(SOME, (1, 2), now)
        return [field[:].tolist() for field in batch[:3]]

    assert users(0, 1) == users(0, 1)
    assert users(0, 1) != users(0, 2)
    assert users(0, 1) != users(1, 1)
