"""Attention over packed rows, shared by the sequence encoders."""

import flax.linen as nn
import jax
import jax.numpy as jnp

initializer = nn.initializers.normal(0.02)
query_initializer = initializer  # of queries, keys and values


def segment_mask(segments: jax.Array, causal: bool) -> jax.Array:
    """[R, T] -> [R, 1, T, T]: query t may look at key s of its own sequence.

    Empty slots (segment 0) see each other, so no softmax is empty.
    """
    mask = segments[:, :, None] == segments[:, None, :]
    if causal:
        mask &= jnp.tril(jnp.ones(mask.shape[-2:], bool))
    return mask[:, None]


class Attention(nn.Module):
    """Multi-head attention with separate inputs for queries and for keys and values."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, queries, keys, mask, train: bool):
        width = queries.shape[-1]

        def project(name, x):
            shape = (self.heads, width // self.heads)
            return nn.DenseGeneral(shape, kernel_init=query_initializer, name=name)(x)

        q, k, v = (
            project("query", queries),
            project("key", keys),
            project("value", keys),
        )
        scores = jnp.einsum("rthd,rshd->rhts", q, k) * (width // self.heads) ** -0.5
        weights = nn.softmax(jnp.where(mask, scores, -1e9))
        weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
        mixed = jnp.einsum("rhts,rshd->rthd", weights, v)
        return nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=initializer, name="output"
        )(mixed)
