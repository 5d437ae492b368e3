"""Ranking metrics: one value per query, averaged last (docs/protocol.md#metrics).

A metric is a function (hits, n_targets) -> [Q] of Q queries at one cut-off k:

hits: [Q, k] bool, whether the item at each rank of the list is a target.
n_targets: [Q] distinct targets, at least one.

Those of UNCUT read the whole ranking of queries with one target. They can select
(`eval.select_by`); reports have those at cut-offs alone. Of all, greater is better.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from create_jax import named


def ndcg(hits: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
    """DCG / the ideal DCG of min(k, targets) hits."""
    k = hits.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0], np.cumsum(discount)])[np.minimum(n_targets, k)]
    return hits @ discount / ideal


def recall(hits: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
    """Hits / targets; with one target the hit rate."""
    return hits.sum(1) / n_targets


def mrr(hits: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
    """1 / rank of the first hit, from 1; 0 without a hit."""
    return np.max(hits / np.arange(1, hits.shape[1] + 1), axis=1)


METRICS = {"ndcg": ndcg, "recall": recall, "mrr": mrr}


def reciprocal_rank(ranks: np.ndarray, candidates: int) -> np.ndarray:
    """1 / rank, from 1, [Q]; 0 for a target that is not ranked."""
    return np.where(ranks < candidates, 1 / (1.0 + ranks), 0.0)


def log_reciprocal_rank(ranks: np.ndarray, candidates: int) -> np.ndarray:
    """log(1 / rank), [Q]; a target that is not ranked is behind the last candidate."""
    return -np.log(1.0 + np.minimum(ranks, candidates))


# Of ranks [Q] as in `from_ranks`, and the number of candidates. The log-likelihood
# comes from the scores (`evaluate`).
BY_RANK = {"mrr": reciprocal_rank, "log_reciprocal_rank": log_reciprocal_rank}
UNCUT = (*BY_RANK, "log_likelihood")


def chosen(rules: Mapping) -> dict[str, Callable]:
    """The metrics of the package, and those that the config's `eval` names by a dotted
    path. The key of these is the last part of the path. Their settings are
    `eval.<name>.<argument>`.

    Raises:
      InputError: there is none of that name.
    """
    found = dict(METRICS)
    for name in rules["metrics"]:
        what = "function (hits [Q, k], n_targets [Q]) -> [Q]"
        metric = named.find("eval.metrics", name, METRICS, what)
        named.check_call("eval.metrics", name, metric, 2)
        given = named.arguments(rules, name, metric)
        found[named.last(name)] = partial(metric, **given) if given else metric
    return found


def from_ranks(
    ranks: np.ndarray, k: int, metrics: Mapping[str, Callable] = METRICS
) -> dict[str, np.ndarray]:
    """One target per query: every metric at k, [Q] each.

    ranks: [Q] how many candidates rank before the target, 0 = first.
    """
    # With one target a metric has k + 1 values: one for each rank, and one for a miss.
    hits, ones = np.eye(k + 1, k, dtype=bool), np.ones(k + 1, np.int64)
    places = np.minimum(ranks, k)
    return {f"{name}@{k}": of(hits, ones)[places] for name, of in metrics.items()}


def from_lists(
    top: np.ndarray,
    targets: np.ndarray,
    offsets: np.ndarray,
    k: int,
    metrics: Mapping[str, Callable] = METRICS,
) -> dict[str, np.ndarray]:
    """One or more targets per query, from top lists: every metric at k, [Q] each.

    Args:
      top: [Q, >= k] item ids, best first, 0 = nothing.
      targets, offsets: ragged, as in Holdout.
    """
    top = top[:, :k]
    sizes = np.diff(offsets)
    query = np.repeat(np.arange(len(top)), sizes)
    n_ids = 1 + max(int(top.max(initial=0)), int(targets.max(initial=0)))
    wanted = np.unique(query * n_ids + targets)
    keys = np.arange(len(top))[:, None] * n_ids + top
    place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    hits = (wanted[place] == keys) & (top > 0)
    hits = np.pad(hits, ((0, 0), (0, k - hits.shape[1])))  # small catalogue
    distinct = np.bincount(wanted // n_ids, minlength=len(top))
    return {f"{name}@{k}": of(hits, distinct) for name, of in metrics.items()}


def coverage(shown: np.ndarray) -> float:
    """Distinct items in all top-k lists / all items of the data set.

    Args:
      shown: [I + 1] bool, whether an item is in a list; column 0 is no item.
    """
    return float(shown[1:].mean())
