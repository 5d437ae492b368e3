"""The paired test of users and runs, against scipy's and by drawing again."""

import numpy as np
import pytest
from scipy import stats

from create_jax import paired

RNG = np.random.default_rng(0)


def equals(found, exact, mean):
    """One test of scipy's: p and interval."""
    ends = exact.confidence_interval(0.95)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p == pytest.approx(exact.pvalue)


@pytest.mark.parametrize("shift", [0.0, 0.1, -2.0])
def test_of_one_run_it_is_the_paired_t_test_over_users(shift):
    ours, theirs = RNG.normal(shift, 1, (2, 300, 1))
    for same_seeds in (True, False):
        found = paired.difference(ours, theirs, same_seeds)
        exact = stats.ttest_rel(ours[:, 0], theirs[:, 0])
        equals(found, exact, ours.mean() - theirs.mean())


def test_where_all_users_are_alike_it_is_the_t_test_over_runs():
    ours, theirs = RNG.normal(0, 1, 4), RNG.normal(0.5, 3, 4)
    tables = [np.tile(runs, (50, 1)) for runs in (ours, theirs)]
    mean = ours.mean() - theirs.mean()
    equals(paired.difference(*tables, True), stats.ttest_rel(ours, theirs), mean)
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    equals(paired.difference(*tables, False), welch, mean)


def test_what_seeds_share_goes_only_where_they_are_the_same():
    shared = RNG.normal(0, 1, (1, 4))
    ours = RNG.normal(0, 1, (200, 1)) + shared
    theirs = ours + RNG.normal(0.1, 0.3, (200, 4))
    pairs, apart = (paired.difference(ours, theirs, same) for same in (True, False))
    assert pairs.deviation < 0.05 and apart.deviation > 0.3


@pytest.mark.parametrize("of_users, of_runs", [(1.0, 0.0), (0.0, 0.05), (1.0, 0.03)])
def test_of_no_difference_one_in_twenty_is_seen_at_most(of_users, of_runs):
    """Users and runs drawn anew each time; 5% of 2,000 have a deviation of 0.5%."""
    n, runs, seen = 60, 4, []
    for _ in range(2000):
        gaps = of_users * RNG.normal(size=(n, 1)) + of_runs**0.5 * RNG.normal(size=runs)
        gaps = gaps + RNG.normal(size=(n, runs))
        seen.append(paired.difference(gaps, np.zeros_like(gaps), True).p < 0.05)
    assert 0.01 < np.mean(seen) < 0.07


def test_a_sample_without_spread_knows_nothing():
    alike = np.full((9, 3), 0.3)
    for ours, theirs in ((alike, alike), (alike + 0.1, alike), (alike[:1], alike[:1])):
        for kind in (paired.difference, paired.relative):
            found = kind(ours, theirs[:, :1], False)
            assert found.p == 1.0 and found.low == found.mean == found.high


def test_a_gain_in_percent_has_the_spread_of_its_ratio():
    """Against drawing users again."""
    ours, theirs = RNG.gamma(0.5, 2, (2, 4000, 1)) * [[[1.1]], [[1.0]]]
    found = paired.relative(ours, theirs, False)
    rows = RNG.integers(0, 4000, (3000, 4000))
    drawn = 100 * (ours[rows, 0].mean(1) / theirs[rows, 0].mean(1) - 1)
    assert found.mean == pytest.approx(100 * (ours.mean() / theirs.mean() - 1))
    assert found.deviation == pytest.approx(drawn.std(), rel=0.05)
    assert (found.low, found.high) == pytest.approx(
        np.percentile(drawn, [2.5, 97.5]), abs=1
    )


def test_a_user_counts_with_all_its_queries():
    """Against drawing users again, each with its queries."""
    counts = RNG.integers(1, 9, 2000)
    sums = counts[:, None] * RNG.normal(0.3, 1, (2000, 1)) + RNG.normal(size=(2000, 3))
    values = paired.per_user(sums, counts)
    np.testing.assert_allclose(values.mean(0), sums.sum(0) / counts.sum())
    rows = RNG.integers(0, 2000, (3000, 2000))
    drawn = sums[:, 0][rows].sum(1) / counts[rows].sum(1)
    assert values[:, 0].std() / 2000**0.5 == pytest.approx(drawn.std(), rel=0.05)


@pytest.mark.parametrize("freedom, claims", [(5.0, 1), (200.0, 1), (200.0, 40)])
def test_what_is_detectable_is_seen_by_four_of_five_tests(freedom, claims):
    size = paired.detectable(0.3, freedom, claims)
    true = size / 0.3
    edge = stats.t.ppf(1 - 0.025 / claims, freedom)
    assert stats.nct.sf(edge, freedom, true) == pytest.approx(0.8, abs=0.02)


def test_holm_of_a_known_example():
    found = paired.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0] and paired.holm([]) == []
