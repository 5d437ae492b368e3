"""Exact top k: against a plain sort, where it is easy to be wrong."""

import numpy as np
import pytest

from create_jax import topk


def plain(vectors, table, k, hidden=None, allowed=None):
    """All scores in double precision, rounded, sorted: the lowest code of equals."""
    scores = np.zeros((len(vectors), len(table)), np.float32)
    for query, vector in enumerate(vectors.astype(np.float64)):
        with np.errstate(over="ignore"):
            scores[query] = (table.astype(np.float64) * vector).sum(axis=1)
        if hidden is not None:
            scores[query, hidden[query]] = -np.inf
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    short = ((0, 0), (0, k - best.shape[1]))
    best = np.pad(best, short, constant_values=-np.inf)
    return np.where(best > -np.inf, np.pad(order, short), 0), best


def agree(vectors, table, k, **rules):
    items, scores = topk.best(vectors, table, k, **rules)
    wanted, wanted_scores = plain(vectors, table, k, **rules)
    assert items.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_array_equal(scores, wanted_scores)
    np.testing.assert_array_equal(items, wanted)
    return items, scores


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=["whole", "blocks"])
def sampled(request, monkeypatch):
    """A small table, with a sample of every 20th or so."""
    monkeypatch.setattr(topk, "SAMPLE", 100)
    monkeypatch.setattr(topk, "EXACT", 64)
    if request.param == "blocks":
        monkeypatch.setattr(topk, "SCORES", 700)


@pytest.mark.parametrize("k", [1, 10, 300, 2000, 2100])
def test_a_sort_says_the_same(draw, sampled, k):
    agree(draw(5, 16), draw(2000, 16), k)


def test_hidden_and_not_allowed_never_come(draw, sampled):
    vectors, table = draw(4, 8), draw(2000, 8)
    best = topk.best(vectors, table, 40)[0]
    hidden = [best[0], [], best[2, :1], np.arange(2000)]
    allowed = np.ones(2000, bool)
    allowed[0] = allowed[best[1, :20]] = False
    items, scores = agree(vectors, table, 50, hidden=hidden, allowed=allowed)
    assert (scores[3] == -np.inf).all() and (items[3] == 0).all()
    few = np.zeros(2000, bool)
    few[[3, 700, 1999]] = True
    agree(vectors, table, 50, hidden=hidden, allowed=few)
    agree(vectors, table, 2, hidden=hidden, allowed=few)
    agree(vectors, table, 2, allowed=np.zeros(2000, bool))


def test_equal_scores_give_the_lowest_codes(draw, sampled):
    row = draw(1, 16)
    table = np.repeat(row, 2000, 0)
    items, _ = agree(draw(3, 16), table, 30)
    np.testing.assert_array_equal(items, [np.arange(30)] * 3)
    agree(np.zeros((2, 16), np.float32), draw(2000, 16), 30)
    table = draw(2000, 16)  # many pairs and triples of equals
    table[1000:] = table[:1000]
    table[500:700] = table[:200]
    agree(draw(6, 16), table, 31)


def test_a_sample_that_misleads_costs_time_and_nothing_else(draw, sampled):
    table = draw(2000, 4)
    table[::20] *= 100  # the sample has nothing but the longest rows
    agree(draw(4, 4), table, 150)
    table = draw(2000, 4)
    table[1::20] *= 100  # and here none of them
    agree(draw(4, 4), table, 150)
    agree(draw(4, 4), table, 5, allowed=np.arange(2000) % 20 == 1)
    agree(draw(4, 4), table, 5, allowed=np.arange(2000) % 20 != 0)


def test_rounding_changes_no_place(sampled):
    """Scores that differ by less than a float32 product is off."""
    rng = np.random.default_rng(1)
    table = np.repeat(rng.standard_normal((1, 64)), 2000, 0)
    table += 1e-7 * rng.standard_normal(table.shape)
    agree(rng.standard_normal((3, 64)).astype(np.float32), table.astype(np.float32), 9)


def test_an_answer_does_not_depend_on_who_else_asks(draw, monkeypatch):
    vectors, table = draw(33, 64), draw(5003, 64)
    items, scores = topk.best(vectors, table, 20)
    for query in (0, 17, 32):
        alone = topk.best(vectors[query : query + 1], table, 20)
        np.testing.assert_array_equal(alone[0][0], items[query])
        np.testing.assert_array_equal(alone[1][0], scores[query])


def test_infinite_scores(sampled):
    table = np.ones((2000, 2), np.float32)
    table[7], table[1500], table[3] = 3e38, 2e38, -3e38
    vectors = np.array([[3e38, 3e38], [1, 1]], np.float32)
    with np.errstate(over="ignore"):
        items, scores = agree(vectors, table, 5)
        assert np.isposinf(scores[0, :2]).all() and 3 not in items
        items, scores = agree(vectors, table, 2000)
    assert 3 not in items[0] and np.isneginf(scores[0, -1])


def test_nan_and_shapes_that_do_not_fit_are_refused(draw, sampled):
    vectors, table = draw(3, 4), draw(2000, 4)
    table[1234, 2] = np.nan
    with pytest.raises(ValueError, match="a score is NaN"):
        topk.best(vectors[:1], table, 5)
    with pytest.raises(ValueError, match="a score is NaN"):
        topk.best(vectors, table, 5)
    vectors[1, 1] = np.nan
    with pytest.raises(ValueError, match="vector has a NaN"):
        topk.best(vectors, draw(20, 4), 5)
    with pytest.raises(ValueError, match="do not fit"):
        topk.best(draw(3, 5), table, 5)
    with pytest.raises(ValueError, match="k is 0"):
        topk.best(draw(3, 4), draw(20, 4), 0)


def test_nothing_asked_and_nothing_there(draw):
    assert topk.best(draw(0, 4), draw(9, 4), 3)[0].shape == (0, 3)
    items, scores = topk.best(draw(2, 4), draw(0, 4), 3)
    assert (items == 0).all() and np.isneginf(scores).all()
