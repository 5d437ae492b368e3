"""Metrics worked by hand."""

import numpy as np
import pytest

from create_jax import metrics

LOG2 = np.log2


def test_metrics_of_one_target_by_its_rank():
    ranks = np.array([0, 1, 2, 3, np.iinfo(np.int32).max], np.int32)
    found = metrics.from_ranks(ranks, 3)
    np.testing.assert_allclose(found["ndcg@3"], [1, 1 / LOG2(3), 0.5, 0, 0])
    np.testing.assert_array_equal(found["recall@3"], [1, 1, 1, 0, 0])
    np.testing.assert_allclose(found["mrr@3"], [1, 1 / 2, 1 / 3, 0, 0])
    assert set(found) == {"ndcg@3", "recall@3", "mrr@3"}


def test_metrics_of_whole_rankings_by_hand():
    """Of five candidates; the last two targets are not ranked."""
    ranks, not_ranked = np.array([0, 1, 4, 5, 5], np.int32), np.iinfo(np.int32).max
    ranks[3:] = not_ranked
    found = metrics.reciprocal_rank(ranks, 5)
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 5, 0, 0])
    found = metrics.log_reciprocal_rank(ranks, 5)
    np.testing.assert_allclose(found, -np.log([1, 2, 5, 6, 6]))


def test_lists_with_one_target_give_the_metrics_of_its_rank():
    top = np.array([[4, 2, 9, 1], [7, 8, 4, 2], [1, 2, 3, 5], [3, 0, 0, 0]])
    targets = np.array([4, 2, 9, 3])  # ranks 0, 3, none, 0
    ranks = np.array([0, 3, 99, 0])
    for k in (1, 3, 4):
        found = metrics.from_lists(top, targets, np.arange(5), k)
        expected = metrics.from_ranks(ranks, k)
        assert set(found) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values)


def test_lists_with_many_targets_by_hand():
    top = np.array([[5, 1, 7, 2], [3, 4, 6, 8], [9, 2, 0, 0]])
    # Query 0 hits at places 1 and 3, query 1 nowhere, query 2 (five targets) at 1.
    targets = np.array([7, 5, 8] + [1] + [9, 3, 4, 5, 6])
    offsets = np.array([0, 3, 4, 9])
    found = metrics.from_lists(top, targets, offsets, 3)
    ideal = 1 + 1 / LOG2(3) + 1 / 2  # three hits: min(k, targets) for 0 and for 2
    np.testing.assert_allclose(found["ndcg@3"], [1.5 / ideal, 0, 1 / ideal])
    np.testing.assert_allclose(found["recall@3"], [2 / 3, 0, 1 / 5])
    np.testing.assert_allclose(found["mrr@3"], [1, 0, 1])


def test_a_perfect_list_scores_one_whatever_the_number_of_targets():
    top = np.array([[3, 1, 2], [4, 5, 6]])
    found = metrics.from_lists(top, np.array([1, 3, 4]), np.array([0, 2, 3]), 3)
    np.testing.assert_allclose(found["ndcg@3"], [1, 1])
    np.testing.assert_allclose(found["recall@3"], [1, 1])


def test_a_target_named_twice_counts_once():
    top = np.array([[2, 1]])
    found = metrics.from_lists(top, np.array([1, 1]), np.array([0, 2]), 2)
    np.testing.assert_allclose(found["recall@2"], [1])
    np.testing.assert_allclose(found["ndcg@2"], [1 / LOG2(3)])
    np.testing.assert_allclose(found["mrr@2"], [1 / 2])


def test_a_target_belongs_to_its_own_query():
    top = np.array([[1], [2]])
    found = metrics.from_lists(top, np.array([2, 1]), np.arange(3), 1)
    np.testing.assert_array_equal(found["recall@1"], [0, 0])


def test_a_list_shorter_than_k_misses_the_rest():
    top = np.array([[2, 1]])
    found = metrics.from_lists(top, np.array([1, 5, 6]), np.array([0, 3]), 10)
    ideal = 1 + 1 / LOG2(3) + 1 / 2
    np.testing.assert_allclose(found["ndcg@10"], [1 / LOG2(3) / ideal])
    np.testing.assert_allclose(found["recall@10"], [1 / 3])


@pytest.mark.parametrize("k, expected", [(1, 2 / 8), (2, 4 / 8), (3, 5 / 8)])
def test_coverage_counts_distinct_items_and_no_padding(k, expected):
    top = np.array([[1, 2, 3], [1, 4, 0], [5, 2, 0]])
    shown = np.zeros(9, bool)
    shown[top[:, :k]] = True
    assert metrics.coverage(shown) == expected
