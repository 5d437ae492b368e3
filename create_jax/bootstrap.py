"""The paired bootstrap over users and seeds, on arrays alone."""

import numpy as np
from scipy import stats


def resample_users(parts, resamples: int, rng) -> list[np.ndarray]:
    """Bootstrapped means [resamples, C] over queries for each part. A drawn user brings
    all of its queries. All parts and columns share the drawn users.

    Args:
      parts: (sums [N, C] of a user's metrics over queries, counts [N] of queries).
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
    """[B, M] means over seeds of [B, S, M]. S - 1 of S seeds are drawn, so that the
    variance is that of a mean of S (Rao and Wu 1988). A single run is not resampled."""
    resamples, seeds, _ = means.shape
    drawn = rng.integers(0, seeds, (resamples, max(1, seeds - 1), 1))
    return np.take_along_axis(means, drawn, axis=1).mean(axis=1)


def interval(gaps: np.ndarray, difference: float) -> tuple[float, float, float]:
    """(low, high, p) of bootstrapped differences [B] and the one observed.

    The interval has the percentiles of the bootstrap. p is that of a normal with the
    deviation of the bootstrap. A share of resamples cannot be below 1 / B, and Holm's
    correction needs smaller values.
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
