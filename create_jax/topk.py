"""Exact top k of inner products on a CPU, in NumPy.

A BLAS product gives all scores. Every n-th score estimates a cut that a little more
than k items pass. So no step sorts or partitions the whole catalogue. If too few items
pass, the query is repeated without a cut. Items above the cut are scored again in
double precision. The rounding of a float32 product depends on its shape and on the
index of the row. So the order of equal float32 scores would depend on the other queries
of the batch.
"""

from collections.abc import Sequence

import numpy as np

SAMPLE = 2**14  # scores in the sample that estimates the cut
SCORES = 2**22  # scores held at once: 16 MiB
EXACT = 2**16  # rows scored again at once


def best(
    vectors: np.ndarray,
    table: np.ndarray,
    k: int,
    *,
    hidden: Sequence[np.ndarray] | None = None,
    allowed: np.ndarray | None = None,
    longest: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of the highest inner products, best first, ties by lowest code.

    A score is the inner product in double precision, rounded to float32. The
    result of a query is the same to the bit, alone or in a batch.

    Args:
      vectors: [Q, D] float32.
      table: [V, D] float32.
      k: at least 1; above V it counts as V.
      hidden: for each query the codes that are left out.
      allowed: [V] bool, the items that may be returned; None allows all.
      longest: `longest_row(table)`; None computes it in a pass over the table.

    Returns:
      (items [Q, k] int32, scores [Q, k] float32). Where fewer than k are left, items
      are 0 and scores -inf. No item has a score of -inf.

    Raises:
      ValueError: shapes that do not fit, a NaN.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    n_queries, n_items = len(vectors), len(table)
    if vectors.ndim != 2 or table.ndim != 2 or vectors.shape[1] != table.shape[1]:
        raise ValueError(f"vectors {vectors.shape} do not fit a table {table.shape}")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    if np.isnan(vectors).any():
        raise ValueError("a query's vector has a NaN")
    hidden = [np.unique(h) for h in hidden] if hidden is not None else [[]] * n_queries
    if allowed is not None and np.count_nonzero(allowed) < n_items // 8:
        codes = np.flatnonzero(allowed)
        hidden = [np.flatnonzero(np.isin(codes, h)) for h in hidden]
        items, scores = best(vectors, table[codes], k, hidden=hidden)
        found = np.isfinite(scores) | (scores > 0)
        return np.where(found, np.append(codes, 0)[items], 0).astype(np.int32), scores

    items = np.zeros((n_queries, k), np.int32)
    scores = np.full((n_queries, k), -np.inf, np.float32)
    if not n_queries or not n_items:
        return items, scores
    margins = _margins(vectors, longest_row(table) if longest is None else longest)
    passed = _above_cut(vectors, table, k, hidden, allowed, margins)
    for query, (codes, rough, cut) in enumerate(passed):
        keep = _may_come(codes, hidden[query], allowed) & (rough > -np.inf)
        if np.count_nonzero(keep & (rough >= cut)) < k and cut > -np.inf:
            rough = _product(vectors[query : query + 1], table)[0]
            codes = np.arange(n_items)
            keep = _may_come(codes, hidden[query], allowed) & (rough > -np.inf)
        codes, rough = codes[keep], rough[keep]
        if k < len(codes):
            last = np.partition(rough, len(rough) - k)[len(rough) - k]
            codes = codes[rough >= last - margins[query]]
        exact = _exact(vectors[query], table, codes)
        order = np.argsort(-exact, kind="stable")[:k]
        items[query, : len(order)] = codes[order]
        scores[query, : len(order)] = exact[order]
    return items, scores


def longest_row(table: np.ndarray) -> float:
    """The greatest norm of a row [D] of a table [V, D]: bounds how a product rounds."""
    blocks = (table[at : at + EXACT] for at in range(0, len(table), EXACT))
    squares = [np.einsum("vd,vd->v", b, b, dtype=np.float64).max() for b in blocks]
    return float(np.sqrt(max(squares, default=0.0)))


def _product(vectors: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[Q, D], [B, D] -> [Q, B] float32; NaN is refused."""
    alone = len(vectors) == 1  # a matrix-vector product
    scores = (table @ vectors[0])[None] if alone else vectors @ table.T
    if np.isnan(scores.max()):
        raise ValueError("a score is NaN: the table has rows that are not finite")
    return scores


def _may_come(codes, hidden, allowed) -> np.ndarray:
    """[C] bool: which of the codes [C] are allowed and not hidden."""
    keep = np.ones(len(codes), bool) if allowed is None else allowed[codes]
    return keep & ~np.isin(codes, hidden) if len(hidden) else keep


def _margins(vectors: np.ndarray, longest: float) -> np.ndarray:
    """[Q] How far below the k-th best float32 score one of the best k may stand.

    A float32 inner product of D terms is off by at most D u |x| |y|, u = 2^-24, and the
    rounded score by u |x| |y| (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, section 3.1). u is doubled here for the terms of second order. If two scores
    change their order, each may be off by this much.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return 2 * (vectors.shape[1] + 1) * 2.0**-23 * lengths * longest


def _above_cut(vectors, table, k, hidden, allowed, margins):
    """For each query: the codes whose float32 scores are above the cut less the margin,
    ascending; their scores; and the cut. Usually a few more than k scores are above the
    cut. By chance there may be fewer."""
    n_queries, n_items = len(vectors), len(table)
    step = max(1, n_items // SAMPLE)
    width = max(1, SCORES // n_queries)
    whole = _product(vectors, table) if width >= n_items else None
    sample = whole[:, ::step] if whole is not None else _product(vectors, table[::step])
    if allowed is not None:
        sample = sample[:, allowed[::step]]
    cuts = [_cut(s, k + len(h), step) for s, h in zip(sample, hidden, strict=True)]
    floors = [np.float32(c - m) for c, m in zip(cuts, margins, strict=True)]
    if whole is not None:
        for scores, cut, floor in zip(whole, cuts, floors, strict=True):
            codes = np.flatnonzero(scores >= floor)
            yield codes, scores[codes], cut
        return
    found = [[] for _ in range(n_queries)]
    for start in range(0, n_items, width):
        block = _product(vectors, table[start : start + width])
        for scores, floor, parts in zip(block, floors, found, strict=True):
            codes = np.flatnonzero(scores >= floor)
            parts.append((codes + start, scores[codes]))
    for parts, cut in zip(found, cuts, strict=True):
        codes, scores = zip(*parts, strict=True)
        yield np.concatenate(codes), np.concatenate(scores), cut


def _cut(sample: np.ndarray, wanted: int, step: int) -> float:
    """A score that about `wanted` items pass; every `step`-th item is in the sample.

    About step * r items are above the r-th of the sample, with a deviation of
    step * sqrt(r). r is chosen so that four deviations fewer are still enough.
    """
    rank = wanted
    if step > 1:
        rank = int(np.ceil((2 + np.sqrt(4 + wanted / step)) ** 2))
    if rank >= len(sample):
        return -np.inf
    return np.partition(sample, len(sample) - rank)[len(sample) - rank]


def _exact(vector: np.ndarray, table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[D], [V, D], [C] -> [C] inner products in double precision, rounded once."""
    vector = vector.astype(np.float64)
    exact = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), EXACT):
        rows = table[codes[start : start + EXACT]].astype(np.float64)
        exact[start : start + EXACT] = (rows * vector).sum(axis=1)
    return exact
