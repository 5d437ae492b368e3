"""BERT4Rec (Sun et al. 2019): both directions, masked items; full cross-entropy.

The functions below the encoder build the inputs of all encoders with the objective
`masked`.
"""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from create_jax.models.transformer import (
    Attention,
    Dropout,
    initializer,
    pick,
    segment_mask,
)

OBJECTIVE = "masked"


class Encoder(nn.Module):
    """Post-norm BERT blocks over item + position, as in the Hugging Face encoder.

    a = LN(x + Drop(MHA(x))); x' = LN(a + Drop(W2 gelu(W1 a))), W1 of width m d.
    """

    blocks: int
    heads: int
    dropout: float
    max_len: int
    feed_forward: int

    @nn.compact
    def __call__(self, x, positions, segments, train: bool, read=None):
        """[R, T, D] item vectors, [R, T] positions and segments -> states [R, T, D].

        read: [R, M] columns, if only their states [R, M, D] are wanted.
        """
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, epsilon=1e-12)
        dense = partial(nn.Dense, kernel_init=initializer)

        def drop(x):
            return Dropout(self.dropout)(x, train)

        table = self.param("positions", initializer, (self.max_len, width))
        x = drop(norm(name="embedding_norm")(x + table[positions]))
        for block in range(self.blocks):
            wanted = read if block == self.blocks - 1 else None
            queries, mask = pick(x, wanted), segment_mask(segments, False, wanted)
            attention = Attention(self.heads, self.dropout, name=f"attention_{block}")
            mixed = drop(attention(queries, x, mask, train))
            a = norm(name=f"attention_norm_{block}")(queries + mixed)
            inner = dense(self.feed_forward * width, name=f"feed_forward_in_{block}")(a)
            inner = nn.gelu(inner, approximate=False)
            outer = dense(width, name=f"feed_forward_out_{block}")(inner)
            x = norm(name=f"feed_forward_norm_{block}")(a + drop(outer))
        return x


def hidden_columns(targets, share: float):
    """[R, M] the columns of a row's targets, then others: the states that L_local
    reads where a share of the items is hidden. None = all T.

    M is six deviations above the mean. In a row with more targets (one row in 10^8),
    the last ones are not trained.
    """
    length = targets.shape[1]
    deviation = math.sqrt(length * share * (1 - share))
    most = math.ceil(length * share + 6 * deviation)
    if most >= length:
        return None
    return jnp.argsort(targets == 0, axis=1, stable=True)[:, :most]


def training_view(batch, mask: int):
    """The input in training: the history with the targets hidden. Only queries have a
    [MASK] after the history. mask: the id of [MASK]."""
    segments = jnp.where(batch.items == mask, 0, batch.segments)
    items = jnp.where(batch.targets > 0, mask, batch.items)
    return batch._replace(items=items, segments=segments)


def query_view(batch, mask: int):
    """Every history with a [MASK] at its end, as in a query. A history that fills its
    row loses its oldest item to make room."""
    newest = batch.items[:, -1:]
    full = batch.positions[:, -1:] == batch.items.shape[1] - 1
    full &= newest != mask
    shifted = jnp.concatenate([batch.items[:, 1:], jnp.full_like(newest, mask)], axis=1)
    return batch._replace(items=jnp.where(full, shifted, batch.items))


def ends_in_view(batch, view, mask: int):
    """The training view with `last` at the newest item of each history, which ends
    there before its [MASK]."""
    followed = batch.items.reshape(-1)[batch.last] == mask
    return view._replace(last=batch.last - (followed & (batch.weights > 0)))
