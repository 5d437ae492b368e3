"""eSASRec (arXiv 2508.06450): SASRec's objective on LiGR blocks (arXiv 2502.03417)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from create_jax.models.transformer import Attention, Dropout, pick, segment_mask

OBJECTIVE = "next"

# The initial values of RecTools' eSASRec, Xavier normal. torch keeps queries, keys and
# values in one matrix [3 d, d], so their deviation is smaller.
initializer = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
query_initializer = nn.initializers.variance_scaling(0.5, "fan_in", "normal")


class Encoder(nn.Module):
    """Pre-norm blocks whose residuals pass a gate computed from the block's input.

    x += s(Wg1 x) * Drop(MHA(LN x)); x += s(Wg2 x) * Drop(SwiGLU(LN x)), without bias in
    the SwiGLU of width m d.
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
        norm = partial(nn.LayerNorm, epsilon=1e-5)
        dense = partial(nn.Dense, kernel_init=initializer)
        plain = partial(dense, use_bias=False)

        def drop(x):
            return Dropout(self.dropout)(x, train)

        table = self.param("positions", initializer, (self.max_len, width))
        # Counted from the newest item, as its source does.
        lengths = segment_mask(segments, causal=False).sum(-1)[:, 0]
        newest_first = jnp.clip(lengths - 1 - positions, 0, self.max_len - 1)
        x = drop(x + table[newest_first])
        for block in range(self.blocks):
            wanted = read if block == self.blocks - 1 else None
            mask = segment_mask(segments, True, wanted)
            y = norm(name=f"attention_norm_{block}")(x)
            attention = Attention(
                self.heads,
                self.dropout,
                causal=wanted is None,
                query_initializer=query_initializer,
                output_initializer=initializer,
                name=f"attention_{block}",
            )
            mixed = attention(pick(y, wanted), y, mask, train)
            x = pick(x, wanted)
            gate = nn.sigmoid(dense(width, name=f"attention_gate_{block}")(x))
            x += gate * drop(mixed)
            y = norm(name=f"feed_forward_norm_{block}")(x)
            inner = self.feed_forward * width
            up = nn.silu(plain(inner, name=f"feed_forward_gate_{block}")(y))
            up *= plain(inner, name=f"feed_forward_in_{block}")(y)
            outer = plain(width, name=f"feed_forward_out_{block}")(drop(up))
            gate = nn.sigmoid(dense(width, name=f"gate_{block}")(x))
            x += gate * drop(outer)
        return x
