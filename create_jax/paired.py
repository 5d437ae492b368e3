"""How sure a difference of two systems is: users and runs both are samples.

A metric of a system is a table, users by runs: every run answers every user. Its mean
varies with the users that are asked and with the runs that are trained. The variance of
a difference is the sum of both: that over users of their mean over runs, and that over
runs of their mean over users. What neither explains, the noise of one list, is in both
and so is counted twice, which is on the safe side. (A bootstrap that draws users and
runs counts it three times, Owen 2007, and says nothing of how few the runs are.) The
degrees of freedom of the sum are Welch's and Satterthwaite's.

Where there is no difference, 2 to 6 tests in a hundred see one at the 5% level with
four seeds, and 2 to 11 with two: most where the runs have most of the variance. At the
0.1% level, near which Holm's correction looks, too many do where the runs have half of
it or more: 0.2 to 0.8 in a hundred with four seeds. `python -m
benchmarks.null_differences` prints these.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Difference(NamedTuple):
    """A difference of means, its interval of 95% and the two-sided p of a difference of
    zero, both by Student's t with the deviation and its degrees of freedom."""

    mean: float
    low: float
    high: float
    p: float
    deviation: float
    freedom: float


def difference(ours: np.ndarray, theirs: np.ndarray, same_seeds: bool) -> Difference:
    """Of the means of two tables, [N, S] and [N, T], over the same N users.

    Args:
      same_seeds: the runs are pairs, S = T, each of one seed: with it systems share
        their first weights and the order of users, and an ablation nearly all else.

    A single run leaves the chance of training out of its system's part.
    """
    return _told(ours.mean() - theirs.mean(), *_spread(ours, theirs, same_seeds))


def relative(ours: np.ndarray, theirs: np.ndarray, same_seeds: bool) -> Difference:
    """The same in percent of the second mean, whose own spread is in it by the linear
    part of the ratio (the delta method)."""
    other = max(theirs.mean(), 1e-12)
    ratio = ours.mean() / other
    tables = 100 * ours / other, 100 * ratio * theirs / other
    return _told(100 * (ratio - 1), *_spread(*tables, same_seeds))


def per_user(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[N, R] values whose means over users are the means over queries, and whose spread
    is that of these, by their linear part: a user counts with all of its queries.

    Args:
      sums: [N, R] of a user's metrics over its queries in each run. counts: [N].
    """
    mean = sums.sum(0).mean() / counts.sum()
    return mean + (sums - mean * counts[:, None]) / counts.mean()


def detectable(deviation: float, freedom: float, claims: int = 1) -> float:
    """The true difference that four of five such tests see at the 5% level, of so many
    claims at the strictest step of Holm's correction."""
    edge = stats.t.ppf(1 - 0.025 / claims, freedom) + stats.t.ppf(0.8, freedom)
    return float(edge * deviation)


def _spread(ours, theirs, same_seeds: bool) -> tuple[float, float]:
    """(the deviation of a difference of means, its degrees of freedom)."""
    tables = [ours - theirs] if same_seeds else [ours, theirs]
    samples = [ours.mean(1) - theirs.mean(1), *(table.mean(0) for table in tables)]
    samples = [sample for sample in samples if len(sample) > 1]
    parts = [sample.var(ddof=1) / len(sample) for sample in samples]
    largest = max(1.0, np.abs(ours).max(), np.abs(theirs).max())
    if len(ours) == 1 or sum(parts) <= (1e-9 * largest) ** 2:
        return 0.0, 1.0
    squares = [
        part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True)
    ]
    return float(np.sqrt(sum(parts))), float(sum(parts) ** 2 / sum(squares))


def _told(mean: float, deviation: float, freedom: float) -> Difference:
    half = stats.t.ppf(0.975, freedom) * deviation
    # A sample without spread knows nothing of what else there may be.
    p = 2 * stats.t.sf(abs(mean) / deviation, freedom) if deviation else 1.0
    mean = float(mean)
    return Difference(mean, mean - half, mean + half, float(p), deviation, freedom)


def holm(values: list[float]) -> list[float]:
    """p-values corrected step by step (Holm 1979), in the order given."""
    corrected, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = largest
    return corrected
