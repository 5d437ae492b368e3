"""Attention over packed rows, shared by the sequence encoders."""

import inspect
import math
from collections.abc import Callable
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

initializer = nn.initializers.normal(0.02)
ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)  # rotations of Threefry-2x32, in turns
QUERY_BLOCK = 100  # queries of a block in causal attention; smaller is slower on CPUs


def pick(x: jax.Array, columns: jax.Array | None) -> jax.Array:
    """[R, T, ...] -> [R, M, ...]: the [R, M] columns of each row; None = all."""
    if columns is None:
        return x
    columns = columns.reshape(*columns.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, columns, 1)


def segment_mask(segments: jax.Array, causal: bool, read=None) -> jax.Array:
    """[R, T] -> [R, 1, M, T]: query t may look at key s of its own sequence.

    Empty slots (segment 0) see each other, so no softmax is empty.

    Args:
      read: [R, M] columns of the queries; None = all T.
    """
    keys = jnp.arange(segments.shape[1])
    mask = pick(segments, read)[:, :, None] == segments[:, None, :]
    if causal:
        mask &= (keys if read is None else read)[..., None] >= keys
    return mask[:, None]


def sequence_of_slot(batch) -> jax.Array:
    """[R * T] the sequence 0..B-1 of each slot (any, where the slot is empty).

    Slots of a sequence are contiguous and end at `last`.
    """
    n_slots = batch.items.size
    ends = jnp.where(batch.weights > 0, batch.last, n_slots)
    order = jnp.argsort(ends)
    place = jnp.searchsorted(ends[order], jnp.arange(n_slots))
    return order[jnp.minimum(place, len(order) - 1)]


def apply_encoder(encoder, params, x, batch, *, read=None, train=False, key=None):
    """States of an encoder over packed item vectors.

    Args:
      encoder: Linen module; without an argument `read` it makes all states.
      x: [R, T, D]; batch: of the same rows.
      read: [R, M] columns, if only their states are wanted.

    Returns:
      [R * T, D], or [R * M, D].
    """
    takes_read = "read" in inspect.signature(type(encoder).__call__).parameters
    states = encoder.apply(
        {"params": params},
        x,
        batch.positions,
        batch.segments,
        train,
        *([read] if takes_read else []),
        rngs={"dropout": key} if train else None,
    )
    states = states if takes_read else pick(states, read)
    return states.reshape(-1, x.shape[-1])


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 of any shape. Of a Threefry key word i is the first of Threefry-2x32
    (Salmon et al. 2011, 20 rounds) of the counter (i, 0).

    The rounds are written out, so that XLA fuses them with the reader. On CPUs
    `jax.random.bits` loops over the rounds, and dropout was a quarter of BERT4Rec's
    step on ML-1M. For any other kind of key JAX draws the words.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, shape)
    data = jax.random.key_data(key)
    keys = data[0], data[1], data[0] ^ data[1] ^ np.uint32(0x1BD11BDA)
    x = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + keys[0]
    y = jnp.broadcast_to(keys[1], shape)
    for group in range(1, 6):
        for rotation in ROTATIONS[(group - 1) % 2]:
            x += y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x += keys[group % 3]
        y += keys[(group + 1) % 3] + np.uint32(group)
    return x


class Dropout(nn.Module):
    """Zeros a share `rate` of x and scales the rest to the same mean."""

    rate: float

    @nn.compact
    def __call__(self, x, train: bool):
        """x of any shape -> the same; `train` False leaves it as it is."""
        if not train or not self.rate:
            return x
        words = random_words(self.make_rng("dropout"), x.shape)
        kept = words >= np.uint32(self.rate * 2**32)
        return jnp.where(kept, x / (1 - self.rate), 0)


class Attention(nn.Module):
    """Multi-head attention with separate inputs for queries and for keys and values.

    causal: query t has the position of key t, and the mask hides all later keys. So a
    block of queries reads only the keys up to its end. With two blocks that is three
    quarters of the work. query_initializer: of queries, keys and values;
    output_initializer: of the last projection.
    """

    heads: int
    dropout: float
    causal: bool = False
    query_initializer: Callable = initializer
    output_initializer: Callable = initializer

    @nn.compact
    def __call__(self, queries, keys, mask, train: bool):
        """[R, M, D] queries, [R, T, D] keys, [R, 1, M, T] what may be seen
        -> [R, M, D]."""
        length, width = queries.shape[-2:]

        def project(name, x):
            shape = (self.heads, width // self.heads)
            init = self.query_initializer
            return nn.DenseGeneral(shape, kernel_init=init, name=name)(x)

        q, k, v = (
            project("query", queries),
            project("key", keys),
            project("value", keys),
        )
        q *= (width // self.heads) ** -0.5

        def attend(start, stop):
            seen = stop if self.causal else keys.shape[1]
            scores = jnp.einsum("rthd,rshd->rhts", q[:, start:stop], k[:, :seen])
            may = mask[:, :, start:stop, :seen]
            weights = nn.softmax(jnp.where(may, scores, -1e9))
            weights = Dropout(self.dropout)(weights, train)
            return jnp.einsum("rhts,rshd->rthd", weights, v[:, :seen])

        blocks = max(1, length // QUERY_BLOCK) if self.causal else 1
        ends = [length * number // blocks for number in range(blocks + 1)]
        mixed = [attend(*pair) for pair in pairwise(ends)]
        return nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=self.output_initializer, name="output"
        )(jnp.concatenate(mixed, axis=1))
