"""The paired bootstrap over users and seeds, on arrays alone."""

import numpy as np
from scipy import stats


def resample_users(parts, resamples: int, rng) -> list[np.ndarray]:
    """Bootstrapped means [resamples, C] over queries for each part: users are drawn
    with all queries of theirs, the same ones for all parts and columns.

    Args:
      parts: (sums [N, C] of a user's metrics over queries, counts [N] of these).
    """
    n, means = len(parts[0][1]), [[] for _ in parts]
    block = max(1, 4_000_000 // n)  # draws at a time, so that memory stays small
    for start in range(0, resamples, block):
        rows = (rng.integers(0, n, n) for _ in range(min(block, resamples - start)))
        times = np.stack([np.bincount(row, minlength=n) for row in rows]).astype(float)
        for found, (sums, counts) in zip(means, parts, strict=True):
            found.append((times @ sums) / (times @ counts)[:, None])
    return [np.concatenate(found) for found in means]


def resample_seeds(means: np.ndarray, rng) -> np.ndarray:
    """[B, M] means over seeds of [B, S, M]: of S seeds S - 1 are drawn, which makes the
    variance that of a mean of S (Rao and Wu 1988). A single run stands for itself."""
    resamples, seeds, _ = means.shape
    drawn = rng.integers(0, seeds, (resamples, max(1, seeds - 1), 1))
    return np.take_along_axis(means, drawn, axis=1).mean(axis=1)


def interval(gaps: np.ndarray, difference: float) -> tuple[float, float, float]:
    """(low, high, p) of bootstrapped differences [B] and the one observed.

    The interval is of percentiles. p is of a normal with the bootstrap's deviation: a
    share of resamples knows nothing below 1 / B, where Holm's correction asks.
    """
    low, high = np.percentile(gaps, [2.5, 97.5])
    deviation = gaps.std(ddof=1)
    if deviation == 0:
        return low, high, float(difference == 0)
    return low, high, 2 * stats.norm.sf(abs(difference) / deviation)


def holm(values: list[float]) -> list[float]:
    """p-values corrected step by step (Holm 1979), in the order given."""
    corrected, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = largest
    return corrected
