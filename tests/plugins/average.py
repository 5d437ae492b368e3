"""A sequence encoder: the mean of a history's items so far, times one matrix."""

import flax.linen as nn
import jax.numpy as jnp

from create_jax.models.transformer import segment_mask

OBJECTIVE = "next"
SETTINGS = {"scale": 1.0}


class Encoder(nn.Module):
    blocks: int
    heads: int
    dropout: float
    max_len: int
    feed_forward: int
    scale: float

    @nn.compact
    def __call__(self, x, positions, segments, train: bool):
        seen = segment_mask(segments, causal=True)[:, 0].astype(x.dtype)
        mean = jnp.einsum("rts,rsd->rtd", seen, x) / seen.sum(-1, keepdims=True)
        return self.scale * nn.Dense(x.shape[-1])(mean)
