"""BERT4Rec (Sun et al. 2019): both directions, masked items; full cross-entropy."""

from functools import partial

import flax.linen as nn

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
