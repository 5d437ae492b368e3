"""Streaming ranking against np.argsort over dense scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from create_jax import baselines, build, evaluate, metrics, parallel, steps
from create_jax.configs import table
from create_jax.data import interactions
from create_jax.data.graph import Pairs
from create_jax.data.splits import Holdout

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
# An order of equal items that is not that of their numbers; padding comes first.
PLACES = np.concatenate([[0], 1 + np.random.default_rng(4).permutation(ITEMS)])
# Four different scores only: ties everywhere.
SCORES = (
    np.random.default_rng(1).integers(0, 4, (QUERIES, ITEMS + 1)).astype(np.float32)
)


def given_scores(params, graph):
    return lambda queries: params[queries.query]


def rank_with(mesh, holdout, scores, params, *, filter_seen, top_k, **how):
    lists = dict(lists=top_k > 0, keep_lists=top_k > 0)
    rules = dict(max_len=MAX_LEN, batch=16) | lists | how
    evaluator = evaluate.Evaluator(
        holdout, scores, mesh, ks=[top_k or ITEMS], filter_seen=filter_seen, **rules
    )
    return evaluator.run(params, ())


def by_argsort(holdout, scores, *, filter_seen, top_k):
    """(ranks, top): candidates by falling score, equal ones by their place."""
    ranks, top = [], []
    places = np.arange(ITEMS + 1) if holdout.places is None else holdout.places
    for q in range(holdout.n_queries):
        allowed = holdout.candidates.copy()
        if filter_seen:
            allowed[holdout.log[holdout.begin[q] : holdout.end[q]]] = False
        order = np.lexsort((places, -scores[q]))
        order = order[allowed[order]]
        place = np.flatnonzero(order == holdout.targets[q])
        ranks.append(place[0] if len(place) else evaluate.NOT_RANKED)
        top.append(np.pad(order, (0, top_k))[:top_k])
    return np.array(ranks), np.array(top)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("hidden", [(), (2, 3, 5, 7, 11, 30)], ids=["all", "some"])
def test_ranking_is_argsort_with_ties_by_place(devices, filter_seen, hidden):
    candidates = np.isin(np.arange(ITEMS + 1), (0, *hidden), invert=True)
    holdout = HOLDOUT._replace(candidates=candidates, places=PLACES)
    settings = dict(filter_seen=filter_seen, top_k=26)
    ranking = rank_with(mesh_of(devices), holdout, given_scores, SCORES, **settings)
    ranks, top = by_argsort(holdout, SCORES, **settings)
    np.testing.assert_array_equal(ranking.ranks, ranks)
    np.testing.assert_array_equal(ranking.top, top)
    # The cases that are worth a test do occur.
    assert (ranks == evaluate.NOT_RANKED).any() == bool(hidden)
    assert (top == 0).any() == (filter_seen or bool(hidden))


def by_numpy(holdout, scores, *, filter_seen):
    """The metrics of whole rankings, query by query, in float64."""
    ranks, _ = by_argsort(holdout, scores, filter_seen=filter_seen, top_k=1)
    last, found = holdout.candidates.sum() + 1, []
    for q, rank in enumerate(ranks):
        ranked, target = rank != evaluate.NOT_RANKED, holdout.targets[q]
        allowed = holdout.candidates.copy()
        if filter_seen:
            allowed[holdout.log[holdout.begin[q] : holdout.end[q]]] = False
        shares = np.exp(scores[q].astype(np.float64)) * allowed
        with np.errstate(divide="ignore", invalid="ignore"):
            log = np.log(shares[target] / shares.sum())
        reciprocal = 1 / (rank + 1) if ranked else 0
        found.append((reciprocal, -np.log(rank + 1 if ranked else last), log))
    mrr, log_rank, logs = np.array(found).T
    likelihood = logs[ranks != evaluate.NOT_RANKED].mean()
    return dict(
        zip(metrics.UNCUT, (mrr.mean(), log_rank.mean(), likelihood), strict=True)
    )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_metrics_of_whole_rankings(devices, filter_seen):
    """Some targets are no candidates; large scores do not overflow."""
    candidates = np.isin(np.arange(ITEMS + 1), (0, 2, 3, 5, 7, 11, 30), invert=True)
    holdout = HOLDOUT._replace(candidates=candidates, places=PLACES)
    scores = 200 + 3 * SCORES
    rules = dict(filter_seen=filter_seen, top_k=5, uncut=metrics.UNCUT)
    found = rank_with(mesh_of(devices), holdout, given_scores, scores, **rules).metrics
    expected = by_numpy(holdout, scores, filter_seen=filter_seen)
    for name, value in expected.items():
        np.testing.assert_allclose(found.pop(name), value, rtol=2e-5)
    del rules["uncut"]  # the others are as without
    same = rank_with(mesh_of(devices), holdout, given_scores, scores, **rules)
    assert found == same.metrics


def test_a_list_that_ends_among_equal_items_ends_with_the_first_of_them():
    holdout = HOLDOUT._replace(places=PLACES)
    settings = dict(filter_seen=True, top_k=4)
    ranking = rank_with(mesh_of(1), holdout, given_scores, SCORES, **settings)
    _, top = by_argsort(holdout, SCORES, **settings)
    np.testing.assert_array_equal(ranking.top, top)


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
    rules = dict(ks=[3], max_len=MAX_LEN, filter_seen=True, lists=False)
    evaluator = evaluate.Evaluator(
        HOLDOUT, given_scores, mesh_of(8), **rules, batch=8, chunk=1
    )
    assert evaluator.layout.steps == 7
    ranks, _ = by_argsort(HOLDOUT, SCORES, filter_seen=True, top_k=1)
    for _ in range(2):
        ranking = evaluator.run(SCORES, ())
        assert ranking.top is None and "coverage@3" not in ranking.metrics
        np.testing.assert_array_equal(ranking.ranks, ranks)
    # Other parameters, same questions.
    ranks, _ = by_argsort(HOLDOUT, -SCORES, filter_seen=True, top_k=1)
    np.testing.assert_array_equal(evaluator.run(-SCORES, ()).ranks, ranks)


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
        assert ranking.ranks[long] == rank and not ranking.tied[long]
        hits = QUERIES - (1 if filter_seen else 0)
        assert ranking.metrics[f"recall@{ITEMS}"] == pytest.approx(hits / QUERIES)


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


def holdout_of(targets, history=()):
    """One query for each list of targets, after the same history."""
    sizes = [len(some) for some in targets]
    end = np.full(len(targets), len(history))
    return HOLDOUT._replace(
        users=np.arange(len(targets), dtype=np.int32),
        log=np.array(history, np.int32),
        begin=np.zeros(len(targets), int),
        end=end,
        targets=np.concatenate(targets).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
    )


def summary(targets, scores, ks, **rules):
    """Metrics of queries that all have the same history, item 30, and their scores."""
    rules = dict(max_len=2, filter_seen=False) | rules
    holdout = holdout_of(targets, history=[30])
    scores = np.pad(scores, ((0, 0), (1, ITEMS - len(scores[0]))), constant_values=-9)
    evaluator = evaluate.Evaluator(holdout, given_scores, mesh_of(1), ks=ks, **rules)
    return evaluator.run(scores.astype(np.float32), ()).metrics


def test_a_summary_is_the_mean_over_queries():
    scores = np.array([[9, 8, 7, 6], [9, 1, 8, 7], [9, 8, 7, 6]])  # of items 1 to 4
    result = summary([[1], [4], [2]], scores, [1, 2])
    assert list(result) == [
        *("ndcg@1", "recall@1", "mrr@1", "coverage@1"),
        *("ndcg@2", "recall@2", "mrr@2", "coverage@2"),
    ]
    assert result["ndcg@1"] == pytest.approx(1 / 3)
    assert result["recall@2"] == pytest.approx(2 / 3)
    assert result["coverage@1"] == 1 / ITEMS
    assert result["coverage@2"] == 3 / ITEMS
    assert summary([[1], [4], [2]], scores, [3], lists=False) == {
        "ndcg@3": pytest.approx((1 + 1 / 2 + 1 / np.log2(3)) / 3),
        "recall@3": 1,
        "mrr@3": pytest.approx((1 + 1 / 3 + 1 / 2) / 3),
    }


def test_many_targets_are_judged_by_the_lists():
    scores = np.array([[9, 8, 7, 6], [1, 2, 8, 9]])
    result = summary([[1, 2], [3]], scores, [2], lists=False)
    assert result["recall@2"] == 1
    assert result["ndcg@2"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert result["coverage@2"] == 4 / ITEMS


# --- items of equal scores ------------------------------------------------------------


def test_a_model_without_an_opinion_is_as_good_as_chance():
    """Names are in the order of popularity, as those of a catalogue often are."""
    chance, found = 10 / ITEMS, []
    popular = np.repeat(np.arange(1, ITEMS + 1), 2 * np.arange(ITEMS, 0, -1))
    for names in range(40):
        places = interactions.places_of([f"{names}-{i:02d}" for i in range(ITEMS)])
        holdout = holdout_of(popular[:, None], [30])._replace(places=places)
        ranks = places[popular] - 1  # of a catalogue where all is equal
        found.append((ranks < 10).mean())
        if names == 0:
            rules = dict(ks=[10], max_len=2, filter_seen=False)
            evaluator = evaluate.Evaluator(
                holdout, given_scores, mesh_of(8), keep_lists=True, **rules
            )
            ranking = evaluator.run(np.zeros((len(popular), ITEMS + 1)), ())
            np.testing.assert_array_equal(ranking.ranks, ranks)
            assert ranking.tied.all()
            # Ranks, lists and coverage tell of one order.
            np.testing.assert_array_equal(
                ranking.ranks < 10, (ranking.top == popular[:, None]).any(1)
            )
            assert ranking.metrics["coverage@10"] == chance
    assert np.mean(found) == pytest.approx(chance, abs=0.02)
    assert (popular <= 10).mean() > 0.5  # what the order of the names would give


def test_a_tie_is_one_with_a_candidate_that_is_ranked():
    """Not with padding, an item of the history, or one that is no candidate."""
    scores = np.full((4, ITEMS + 1), -1.0, np.float32)
    for query, others in enumerate([[0], [30], [7], [6]]):
        scores[query, [5, *others]] = 2
    candidates = HOLDOUT.candidates & (np.arange(ITEMS + 1) != 7)
    holdout = holdout_of([[5]] * 4, [30])._replace(candidates=candidates)
    rules = dict(filter_seen=True, top_k=0, max_len=2)
    ranking = rank_with(mesh_of(1), holdout, given_scores, scores, **rules)
    assert ranking.tied.tolist() == [False, False, False, True]


def test_places_are_of_the_name_and_of_nothing_else():
    names = [f"item {n}" for n in range(1000)]
    places = interactions.places_of(names)
    assert places[0] == 0 and sorted(places) == list(range(1001))
    other = np.random.default_rng(0).permutation(1000)
    shuffled = interactions.places_of([names[n] for n in other])
    np.testing.assert_array_equal(shuffled[1:], places[1:][other])
    assert abs(np.corrcoef(np.arange(1000), places[1:])[0, 1]) < 0.1


# --- long histories -------------------------------------------------------------------


def successive(rows: int, others: int = 40):
    """A user asked for each of `rows` items in turn, from all before it, and others."""
    rng = np.random.default_rng(5)
    long, short = rng.integers(1, ITEMS + 1, rows + 1), rng.integers(1, ITEMS + 1, 500)
    begin = np.concatenate([np.zeros(rows, int), rows + 10 * np.arange(others)])
    end = np.concatenate([1 + np.arange(rows), rows + 10 * np.arange(others) + 9])
    log = np.concatenate([long[:rows], short]).astype(np.int32)
    targets = np.concatenate([long[1:], log[end[rows:]]])
    users = np.concatenate([np.zeros(rows, int), 1 + np.arange(others)])
    return Holdout(
        users=users.astype(np.int32),
        log=log,
        begin=begin,
        end=end,
        targets=targets.astype(np.int32),
        offsets=np.arange(len(users) + 1),
        candidates=HOLDOUT.candidates,
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_queries_that_share_a_history_hide_their_own_part_of_it(devices):
    holdout = successive(rows=200)
    scores = np.random.default_rng(6).normal(size=(holdout.n_queries, ITEMS + 1))
    scores = scores.astype(np.float32)
    rules = dict(filter_seen=True, top_k=5)
    evaluator = evaluate.Evaluator(
        *(holdout, given_scores, mesh_of(devices)),
        **dict(ks=[5], max_len=MAX_LEN, filter_seen=True, keep_lists=True, batch=120),
    )
    assert evaluator.shared
    ranking = evaluator.run(scores, ())
    ranks, top = by_argsort(holdout, scores, **rules)
    np.testing.assert_array_equal(ranking.ranks, ranks)
    np.testing.assert_array_equal(ranking.top, top)
    assert (ranks == evaluate.NOT_RANKED).any() and (ranks < ITEMS).any()


def test_histories_of_a_dispatch_stay_as_small_as_the_log():
    """Whatever the number of questions about one long history; they were 10^7 here."""
    holdout = successive(rows=4000)
    rules = dict(ks=[5], max_len=MAX_LEN, filter_seen=True, batch=256)
    evaluator = evaluate.Evaluator(holdout, given_scores, mesh_of(1), **rules)
    (queries,) = evaluator.chunks()
    sizes = [x.size for x in jax.tree.leaves(queries.seen)]
    assert max(sizes) <= evaluator.layout.steps * len(holdout.log)


def test_a_dispatch_has_fewer_steps_where_histories_are_long(monkeypatch):
    monkeypatch.setattr(evaluate, "DISPATCH_ROWS", 300)
    rules = dict(ks=[5], max_len=MAX_LEN, filter_seen=True, batch=16, lists=False)
    evaluator = evaluate.Evaluator(HOLDOUT, given_scores, mesh_of(1), **rules)
    rows = [queries.seen.row.size for queries in evaluator.chunks()]
    assert len(rows) > 1 and max(rows) <= 300
    ranks, _ = by_argsort(HOLDOUT, SCORES, filter_seen=True, top_k=1)
    np.testing.assert_array_equal(evaluator.run(SCORES, ()).ranks, ranks)


def test_two_dispatches_are_on_the_devices_and_no_more(monkeypatch):
    """The answer to one is fetched before the next but one is asked."""
    events = []
    rules = dict(ks=[5], max_len=MAX_LEN, filter_seen=True, batch=8, chunk=1)
    evaluator = evaluate.Evaluator(HOLDOUT, given_scores, mesh_of(1), **rules)
    make, get = evaluator._queries, jax.device_get
    monkeypatch.setattr(
        evaluator, "_queries", lambda n: events.append("ask") or make(n)
    )
    monkeypatch.setattr(
        evaluate.jax, "device_get", lambda x: events.append("fetch") or get(x)
    )
    assert evaluator.run(SCORES, ()).top is None
    assert events == ["ask", *["ask", "fetch"] * 6, "fetch"]


# --- methods without a model ----------------------------------------------------------

COUNTS = np.zeros(ITEMS + 1, int)
COUNTS[[3, 5, 9, 12]] = 80, 40, 20, 10


def counting(method, mesh, seed=0, top_k=ITEMS):
    score = baselines.counting_scores(COUNTS, method, seed)
    holdout = HOLDOUT._replace(places=PLACES)
    return rank_with(mesh, holdout, score, {}, filter_seen=False, top_k=top_k)


def test_mostpop_ranks_by_count_and_then_by_place():
    ranking = counting("mostpop", mesh_of(8))
    rest = [item for item in np.argsort(PLACES)[1:] if item not in (3, 5, 9, 12)]
    assert (ranking.top == [3, 5, 9, 12, *rest]).all()
    unpopular = ~np.isin(HOLDOUT.targets, (3, 5, 9, 12))
    np.testing.assert_array_equal(ranking.tied, unpopular)


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
    queries = evaluate.Queries(None, None, jnp.arange(n), None)
    score = jax.jit(baselines.counting_scores(COUNTS, method, 0)({}, ()))
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
    model = build.make_model(config, QUERIES, ITEMS)
    params = model.init(0)
    users, items = HOLDOUT.users, HOLDOUT.log[HOLDOUT.begin]
    order = np.argsort(users)
    pairs = Pairs(users[order], items[order], np.arange(QUERIES + 1))
    found = []
    for devices in (1, 8):
        mesh = mesh_of(devices)
        arguments = None, pairs, model.n_rows, model.graph_settings, devices
        graph = model.graph.prepare(*arguments)
        evaluator = evaluate.Evaluator(
            *(HOLDOUT, evaluate.model_scores(model, mesh, by_graph=True), mesh),
            **dict(ks=[5], max_len=MAX_LEN, filter_seen=True, keep_lists=True),
        )
        graph = parallel.place(mesh, graph, steps.graph_specs(graph))
        found.append(evaluator.run(parallel.place(mesh, params), graph))
    np.testing.assert_array_equal(found[0].ranks, found[1].ranks)
    np.testing.assert_array_equal(found[0].top, found[1].top)
