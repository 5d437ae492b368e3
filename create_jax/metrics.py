"""Ranking metrics: one value per query, averaged last (docs/protocol.md#metrics)."""

import numpy as np


def from_ranks(ranks: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """One target per query: NDCG, Recall (= hit) and MRR at k, [Q] each.

    ranks: [Q] how many candidates stand before the target, 0 = first.
    """
    hit = ranks < k
    return {
        f"ndcg@{k}": np.where(hit, 1 / np.log2(ranks + 2.0), 0.0),
        f"recall@{k}": hit.astype(np.float64),
        f"mrr@{k}": np.where(hit, 1 / (ranks + 1.0), 0.0),
    }


def from_lists(
    top: np.ndarray, targets: np.ndarray, offsets: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """One or more targets per query, from top lists.

    Recall = hits / targets; NDCG = DCG / ideal DCG of min(k, targets) hits; MRR = of
    the first hit.

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
    hits = (wanted[place] == keys) & (top > 0)  # [Q, k]
    distinct = np.bincount(wanted // n_ids, minlength=len(top))
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0], np.cumsum(discount)])[np.minimum(distinct, k)]
    return {
        f"ndcg@{k}": hits @ discount[: top.shape[1]] / ideal,
        f"recall@{k}": hits.sum(1) / distinct,
        f"mrr@{k}": np.max(hits / np.arange(1, top.shape[1] + 1), axis=1),
    }


def coverage(shown: np.ndarray) -> float:
    """Distinct items in all top-k lists / all items of the data set.

    Args:
      shown: [I + 1] bool, whether an item is in a list; column 0 is no item.
    """
    return float(shown[1:].mean())
