"""Streaming ranking against np.argsort over dense scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from create_jax import evaluate, parallel, settings, steps
from create_jax.configs import table
from create_jax.data.graph import Pairs
from create_jax.data.splits import Holdout
from create_jax.models import create

QUERIES, ITEMS, LONGEST, MAX_LEN = 53, 30, 14, 6


def mesh_of(n):
    devices = jax.devices()[:n]
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def make_holdout(seed=0):
    """Random histories, some longer than MAX_LEN, and one target each, never in it."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, LONGEST + 1, QUERIES)
    drawn = [rng.permutation(ITEMS)[: size + 1] + 1 for size in sizes]
    end = np.cumsum(sizes)
    return Holdout(
        users=rng.permutation(QUERIES).astype(np.int32),
        log=np.concatenate([items[:-1] for items in drawn]).astype(np.int32),
        begin=end - sizes,
        end=end,
        targets=np.array([items[-1] for items in drawn], np.int32),
        offsets=np.arange(QUERIES + 1),
        candidates=np.arange(ITEMS + 1) > 0,
    )


HOLDOUT = make_holdout()
# Four different scores only: ties everywhere.
SCORES = (
    np.random.default_rng(1).integers(0, 4, (QUERIES, ITEMS + 1)).astype(np.float32)
)


def given_scores(params, graph):
    return lambda queries: params[queries.query]


def rank_with(mesh, holdout, scores, params, *, filter_seen, top_k, batch=16, chunk=32):
    asker = evaluate.Asker(
        holdout,
        mesh,
        max_len=MAX_LEN,
        pairs=filter_seen,
        batch=batch,
        chunk=chunk,
    )
    rank = evaluate.compile_ranker(
        scores, holdout.candidates, mesh, top_k=top_k, hide_seen=filter_seen
    )
    return evaluate.ask(rank, asker, params, ())


def by_argsort(holdout, scores, *, filter_seen, top_k):
    """(ranks, top): candidates by falling score, equal ones by item id."""
    ranks, top = [], []
    for q in range(holdout.n_queries):
        allowed = holdout.candidates.copy()
        if filter_seen:
            allowed[holdout.log[holdout.begin[q] : holdout.end[q]]] = False
        order = np.argsort(-scores[q], kind="stable")
        order = order[allowed[order]]
        place = np.flatnonzero(order == holdout.targets[q])
        ranks.append(place[0] if len(place) else evaluate.NOT_RANKED)
        top.append(np.pad(order, (0, top_k))[:top_k])
    return np.array(ranks), np.array(top)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("hidden", [(), (2, 3, 5, 7, 11, 30)], ids=["all", "some"])
def test_ranking_is_argsort_with_ties_by_item(devices, filter_seen, hidden):
    candidates = np.isin(np.arange(ITEMS + 1), (0, *hidden), invert=True)
    holdout = HOLDOUT._replace(candidates=candidates)
    settings = dict(filter_seen=filter_seen, top_k=26)
    ranking = rank_with(mesh_of(devices), holdout, given_scores, SCORES, **settings)
    ranks, top = by_argsort(holdout, SCORES, **settings)
    np.testing.assert_array_equal(ranking.ranks, ranks)
    np.testing.assert_array_equal(ranking.top, top)
    # The cases that are worth a test do occur.
    assert (ranks == evaluate.NOT_RANKED).any() == bool(hidden)
    assert (top == 0).any() == (filter_seen or bool(hidden))


def test_the_whole_history_is_hidden_and_not_only_the_window():
    scores = np.zeros_like(SCORES)
    for q in range(QUERIES):  # the oldest items would come first
        scores[q, HOLDOUT.log[HOLDOUT.begin[q] : HOLDOUT.end[q]]] = 5
    ranking = rank_with(
        mesh_of(1), HOLDOUT, given_scores, scores, filter_seen=True, top_k=3
    )
    sizes = HOLDOUT.end - HOLDOUT.begin
    assert (sizes > MAX_LEN).any()
    for q in range(QUERIES):
        seen = HOLDOUT.log[HOLDOUT.begin[q] : HOLDOUT.end[q]]
        assert not np.isin(ranking.top[q], seen).any()


def test_many_small_dispatches_give_the_same_ranking_twice():
    """More dispatches than stay on the devices; asked twice, as in training."""
    mesh = mesh_of(8)
    asker = evaluate.Asker(HOLDOUT, mesh, max_len=MAX_LEN, pairs=True, batch=8, chunk=1)
    assert asker.layout.steps == 7
    rank = evaluate.compile_ranker(
        given_scores, HOLDOUT.candidates, mesh, top_k=0, hide_seen=True
    )
    ranks, _ = by_argsort(HOLDOUT, SCORES, filter_seen=True, top_k=1)
    for _ in range(2):
        ranking = evaluate.ask(rank, asker, SCORES, ())
        assert ranking.top is None
        np.testing.assert_array_equal(ranking.ranks, ranks)
    # Other parameters, same questions.
    ranks, _ = by_argsort(HOLDOUT, -SCORES, filter_seen=True, top_k=1)
    np.testing.assert_array_equal(evaluate.ask(rank, asker, -SCORES, ()).ranks, ranks)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_target_in_its_own_history_is_a_miss_only_with_the_filter(devices):
    # Query 3 asks for the first, hence oldest, item of its own long history.
    long = int(np.argmax(HOLDOUT.end - HOLDOUT.begin))
    targets = HOLDOUT.targets.copy()
    targets[long] = HOLDOUT.log[HOLDOUT.begin[long]]
    scores = SCORES.copy()
    scores[long, targets[long]] = 9
    holdout, mesh = HOLDOUT._replace(targets=targets), mesh_of(devices)
    for filter_seen, rank in ((True, evaluate.NOT_RANKED), (False, 0)):
        ranking = rank_with(
            mesh, holdout, given_scores, scores, filter_seen=filter_seen, top_k=0
        )
        assert ranking.ranks[long] == rank
        result = evaluate.summarise(ranking, holdout, [ITEMS], ITEMS)
        hits = QUERIES - (1 if filter_seen else 0)
        assert result[f"recall@{ITEMS}"] == pytest.approx(hits / QUERIES)


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_see_the_newest_items_and_the_user_of_their_query(devices):
    rng = np.random.default_rng(2)
    params = {
        "newest": rng.normal(size=(ITEMS + 1, ITEMS + 1)).astype(np.float32),
        "window": rng.normal(size=(ITEMS + 1, ITEMS + 1)).astype(np.float32),
        "user": rng.normal(size=(QUERIES, ITEMS + 1)).astype(np.float32),
    }

    def score(params, graph):
        return partial(score_queries, params)

    def score_queries(params, queries):
        batch = queries.histories
        items, segments = batch.items.ravel(), batch.segments
        row = batch.last // segments.shape[1]
        mine = segments[row] == segments.ravel()[batch.last][:, None]  # [B, T]
        counts = jnp.einsum(
            "bt,btv->bv", mine * 1.0, jax.nn.one_hot(batch.items[row], ITEMS + 1)
        )
        scores = params["newest"][items[batch.last]] + params["user"][batch.users]
        return scores + jnp.matmul(counts, params["window"], precision="highest")

    dense = np.zeros((QUERIES, ITEMS + 1), np.float32)
    for q in range(QUERIES):
        window = HOLDOUT.log[HOLDOUT.begin[q] : HOLDOUT.end[q]][-MAX_LEN:]
        dense[q] = params["newest"][window[-1]] + params["user"][HOLDOUT.users[q]]
        dense[q] += params["window"][window].sum(0)
    settings = dict(filter_seen=True, top_k=5)
    ranking = rank_with(mesh_of(devices), HOLDOUT, score, params, **settings)
    ranks, top = by_argsort(HOLDOUT, dense, **settings)
    np.testing.assert_array_equal(ranking.ranks, ranks)
    np.testing.assert_array_equal(ranking.top, top)


# --- summaries ------------------------------------------------------------------------


def test_a_summary_is_the_mean_over_queries():
    ranking = evaluate.Ranking(np.array([0, 2, 9]), np.array([[1, 2], [1, 3], [1, 2]]))
    holdout = HOLDOUT._replace(users=np.arange(3), targets=np.array([1, 5, 6]))
    result = evaluate.summarise(ranking, holdout, [1, 2], 4)
    assert result["ndcg@1"] == pytest.approx(1 / 3)
    assert result["recall@2"] == pytest.approx(1 / 3)
    assert result["coverage@1"] == 1 / 4
    assert result["coverage@2"] == 3 / 4
    without = evaluate.summarise(ranking._replace(top=None), holdout, [3], 4)
    assert without == {
        "ndcg@3": pytest.approx((1 + 1 / 2) / 3),
        "recall@3": pytest.approx(2 / 3),
        "mrr@3": pytest.approx((1 + 1 / 3) / 3),
    }


def test_many_targets_are_judged_by_the_lists():
    ranking = evaluate.Ranking(np.array([0, 0]), np.array([[1, 2], [4, 3]]))
    holdout = HOLDOUT._replace(
        users=np.arange(2), targets=np.array([1, 2, 3]), offsets=np.array([0, 2, 3])
    )
    result = evaluate.summarise(ranking, holdout, [2], 4)
    assert result["recall@2"] == 1
    assert result["ndcg@2"] == pytest.approx((1 + 1 / np.log2(3)) / 2)


# --- methods without a model ----------------------------------------------------------

COUNTS = np.zeros(ITEMS + 1, int)
COUNTS[[3, 5, 9, 12]] = 80, 40, 20, 10


def counting(method, mesh, seed=0, top_k=ITEMS):
    score = evaluate.counting_scores(COUNTS, method, seed)
    return rank_with(mesh, HOLDOUT, score, {}, filter_seen=False, top_k=top_k)


def test_mostpop_ranks_by_count_and_then_by_item():
    ranking = counting("mostpop", mesh_of(8))
    rest = [item for item in range(1, ITEMS + 1) if item not in (3, 5, 9, 12)]
    assert (ranking.top == [3, 5, 9, 12, *rest]).all()


def test_poprnd_draws_by_count_and_only_what_was_seen():
    mesh = mesh_of(8)
    ranking = counting("poprnd", mesh)
    first_four = np.sort(ranking.top[:, :4], axis=1)
    assert (first_four == [3, 5, 9, 12]).all()
    assert (ranking.top[:, 4:] == 0).all()  # the rest was never seen: no list entry
    assert len(np.unique(ranking.top[:, :4], axis=0)) > 3  # each query draws anew
    np.testing.assert_array_equal(ranking.ranks, counting("poprnd", mesh_of(1)).ranks)
    assert (counting("poprnd", mesh, seed=1).top != ranking.top).any()


@pytest.mark.parametrize("method", ["poprnd", "random"])
def test_first_places_are_drawn_with_the_right_probabilities(method):
    n = 4000
    queries = evaluate.Queries(None, None, jnp.arange(n), None, None)
    score = jax.jit(evaluate.counting_scores(COUNTS, method, 0)({}, ()))
    scores = np.array(score(queries))
    scores[:, 0] = -np.inf  # padding is no candidate
    drawn = np.bincount(scores.argmax(1), minlength=ITEMS + 1) / n
    chance = COUNTS / 150 if method == "poprnd" else (np.arange(ITEMS + 1) > 0) / ITEMS
    np.testing.assert_allclose(drawn, chance, atol=0.025)
    assert (drawn > 0).sum() == (4 if method == "poprnd" else ITEMS)


def test_random_lists_do_not_depend_on_devices():
    ranking = counting("random", mesh_of(8))
    np.testing.assert_array_equal(ranking.top, counting("random", mesh_of(1)).top)
    assert (np.sort(ranking.top, axis=1) == np.arange(1, ITEMS + 1)).all()
    assert len(np.unique(ranking.top[:, 0])) > 15


# --- the graph's own scores -----------------------------------------------------------


def test_a_graph_ranks_alike_on_one_device_and_on_eight():
    """Its propagation is split over the devices that split the queries."""
    config = table.get_config("lightgcn")
    model = settings.make_model(config, QUERIES, ITEMS)
    params = create.init(model, 0)
    users, items = HOLDOUT.users, HOLDOUT.log[HOLDOUT.begin]
    order = np.argsort(users)
    pairs = Pairs(users[order], items[order], np.arange(QUERIES + 1))
    found = []
    for devices in (1, 8):
        mesh = mesh_of(devices)
        arguments = None, pairs, model.n_rows, model.graph_settings, devices
        graph = model.graph.prepare(*arguments)
        asker = evaluate.Asker(HOLDOUT, mesh, max_len=MAX_LEN, pairs=True, batch=16)
        rank = evaluate.compile_ranker(
            evaluate.model_scores(model, by_graph=True),
            HOLDOUT.candidates,
            mesh,
            top_k=5,
            hide_seen=True,
        )
        graph = parallel.place(mesh, graph, steps.graph_specs(graph))
        found.append(evaluate.ask(rank, asker, parallel.place(mesh, params), graph))
    np.testing.assert_array_equal(found[0].ranks, found[1].ranks)
    np.testing.assert_array_equal(found[0].top, found[1].top)
