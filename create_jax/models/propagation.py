"""Sparse products A x by gathers alone, for graphs that propagate.

A segment sum scatters. That is slow on CPUs. On GPUs its order changes from run to run,
and so does its rounding. Here the adjacency is padded instead. Rows of a matrix with
about the same number of terms form a block. Each slot of a block is one gather, which
fuses with its sum. A row of more than 16 terms is a sum of sums.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import lax

from create_jax.data.packing import count_within

WIDTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16])


class Rows(NamedTuple):
    """A sparse matrix [N, M] as blocks of padded rows, split over D devices by terms.

    levels: of the sums; each has a block for each width w in use, (columns [D, w, n],
      weights [D, w, n]). Columns are rows of x, after the first level sums of the one
      before; weight 0 fills up.
    place: [D, N] index of each row's sum in the last level; past its end = no terms.
    """

    levels: tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]
    place: np.ndarray


class Matrix(NamedTuple):
    """rows: of A. columns: rows of A transposed, or None where A is symmetric."""

    rows: Rows
    columns: Rows | None


def graph_of(senders, receivers, weights, n_nodes: int) -> jraph.GraphsTuple:
    """A jraph graph of weighted edges, [E] each."""
    return jraph.GraphsTuple(
        nodes=None,
        edges=np.asarray(weights, np.float32),
        senders=np.asarray(senders, np.int32),
        receivers=np.asarray(receivers, np.int32),
        n_node=np.array([n_nodes]),
        n_edge=np.array([len(senders)]),
        globals=None,
    )


def lay_out(graph: jraph.GraphsTuple, n_rows: int, shards: int = 1) -> Rows:
    """The matrix A[receiver, sender] = weight of a graph's edges.

    Args:
      graph: senders, receivers [E] and, as edges [E], the weights.
      n_rows: N, the number of receivers.
      shards: D, parts of the edges, one for each device.
    """
    order = np.argsort(graph.receivers, kind="stable")
    fields = graph.receivers, graph.senders, graph.edges
    parts = [
        tuple(field[part] for field in fields) for part in np.array_split(order, shards)
    ]
    levels, deep = [], True
    while deep:
        blocks, parts, deep = _level(parts)
        levels.append(blocks)
    place = np.full((shards, n_rows), sum(c.shape[2] for c, _ in levels[-1]), np.int32)
    for shard, (row, sums, _) in enumerate(parts):
        place[shard, row] = sums
    return Rows(tuple(levels), place)


def _level(parts):
    """Sums of at most 16 terms of the same row.

    Args:
      parts: of each device the terms (row [E] sorted, column [E], weight [E]).

    Returns:
      The blocks; the sums as terms of the next level, weight 1; whether a row of
      theirs has several.
    """
    most = int(WIDTHS[-1])
    cuts = []
    for row, _, _ in parts:
        first = np.flatnonzero(np.diff(row, prepend=-1))
        size = np.diff(np.append(first, len(row)))
        pieces = -(-size // most)
        number = count_within(pieces)
        start = np.repeat(first, pieces) + number * most
        length = np.minimum(np.repeat(size, pieces) - number * most, most)
        width = WIDTHS[np.searchsorted(WIDTHS, length)]
        cuts.append((np.repeat(row[first], pieces), start, length, width))
    blocks, offset = [], 0
    sums = [np.zeros(len(cut[0]), np.int32) for cut in cuts]
    for w in WIDTHS:
        members = [np.flatnonzero(cut[3] == w) for cut in cuts]
        n = max(map(len, members))
        if not n:
            continue
        columns = np.zeros((len(parts), w, n), np.int32)
        weights = np.zeros((len(parts), w, n), np.float32)
        for shard, chosen in enumerate(members):
            _, start, length, _ = (field[chosen] for field in cuts[shard])
            slot = np.arange(w)[:, None]
            term = np.where(slot < length, start + slot, 0)
            _, column, weight = parts[shard]
            columns[shard, :, : len(chosen)] = column[term]
            weights[shard, :, : len(chosen)] = weight[term] * (slot < length)
            sums[shard][chosen] = offset + np.arange(len(chosen))
        blocks.append((columns, weights))
        offset += n
    terms = [
        (cut[0], own, np.ones(len(own), np.float32))
        for cut, own in zip(cuts, sums, strict=True)
    ]
    deep = any((np.diff(row) == 0).any() for row, _, _ in terms)
    return tuple(blocks), terms, deep


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, matrix: Matrix, axis_name: str | None = None) -> jax.Array:
    """A x for x [M, W] -> [N, W]. With an `axis_name` each device holds some terms.

    The gradient is A transposed times the cotangent, by gathers as well.
    """
    part = _own_terms(x, matrix.rows)
    return part if axis_name is None else lax.psum(part, axis_name)


def _own_terms(x, rows: Rows):
    for blocks in rows.levels:
        sums = []
        for columns, weights in blocks:
            slots = zip(columns[0], weights[0], strict=True)  # [0]: of this device
            sums.append(sum(weight[:, None] * x[column] for column, weight in slots))
        x = jnp.concatenate([*sums, x[:0]])
    nothing = jnp.zeros((1, x.shape[1]), x.dtype)
    return jnp.concatenate([x, nothing])[rows.place[0]]


def _forward(x, matrix, axis_name):
    return product(x, matrix, axis_name), matrix


def _backward(axis_name, matrix, cotangent):
    # Devices' cotangents add up. Each returns the part of its terms, and the mean
    # over devices of the final gradients puts the parts together (parallel.py).
    if axis_name is not None:
        cotangent = lax.psum(cotangent, axis_name)
    return _own_terms(cotangent, matrix.columns or matrix.rows), None


product.defvjp(_forward, _backward)
