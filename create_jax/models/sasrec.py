"""SASRec (Kang and McAuley 2018), in the form trained with full cross-entropy."""

import flax.linen as nn
import jax.numpy as jnp

from create_jax.models.transformer import (
    Attention,
    Dropout,
    initializer,
    pick,
    segment_mask,
)

OBJECTIVE = "next"


class Encoder(nn.Module):
    """Causal transformer; the state at a position predicts the item after it.

    Uneven pre-norm, as in the public code: queries are normalised, keys and values are
    not, and the residual adds to the normalised query:
    q = LN(x); a = q + MHA(q, x, x); y = LN(a); x' = y + Drop(W2 relu(Drop(W1 y))),
    with W1 of width m d.
    """

    blocks: int
    heads: int
    dropout: float
    max_len: int
    feed_forward: int = 1

    @nn.compact
    def __call__(self, x, positions, segments, train: bool, read=None):
        """[R, T, D] item vectors, [R, T] positions and segments -> states [R, T, D].

        read: [R, M] columns, if only their states [R, M, D] are wanted.
        """
        width = x.shape[-1]

        def norm(name):
            return nn.LayerNorm(epsilon=1e-8, name=name)

        def drop(x):
            return Dropout(self.dropout)(x, train)

        def dense(name, multiple=1):
            return nn.Dense(multiple * width, kernel_init=initializer, name=name)

        table = self.param("positions", initializer, (self.max_len, width))
        real = (segments > 0)[..., None]
        x = drop(x * jnp.sqrt(width).astype(x.dtype) + table[positions]) * real
        for block in range(self.blocks):
            wanted = read if block == self.blocks - 1 else None
            q = norm(f"attention_norm_{block}")(pick(x, wanted))
            mask, real = segment_mask(segments, True, wanted), pick(real, wanted)
            attention = Attention(
                self.heads,
                self.dropout,
                causal=wanted is None,
                name=f"attention_{block}",
            )
            y = norm(f"feed_forward_norm_{block}")(q + attention(q, x, mask, train))
            inner = dense(f"feed_forward_in_{block}", self.feed_forward)(y)
            inner = drop(nn.relu(inner))
            x = (y + drop(dense(f"feed_forward_out_{block}")(inner))) * real
        return norm("final_norm")(x)
