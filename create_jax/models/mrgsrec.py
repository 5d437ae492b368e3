"""MRGSRec (Gimranov et al. 2024, arXiv 2403.00895): a user token and a fusion of graph
and sequence.

L = CE(positions, propagated items) + w_global G + w_fused F + w_bt InfoNCE(positions,
graph user). Recommends by the fused user on the items of the table, so it needs a user
table. Parameters: the two tables, `sequence` (the transformer) and `fusion`.

With two layers or more the published user token, which sees every item and is seen by
every item, carries the next item back to the position that must predict it
(`user_token_mask: leaky`). `causal` hides it from the items. Edge dropout is left out.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from create_jax import losses
from create_jax.models.system import System
from create_jax.models.transformer import (
    Attention,
    Dropout,
    initializer,
    segment_mask,
    sequence_of_slot,
)


class Encoder(nn.Module):
    """Post-norm blocks with GELU over items and one user token at each sequence's end.

    Items get the positions counted from the newest, a norm and dropout; the token is
    the user's row as it is.
    """

    blocks: int
    heads: int
    dropout: float
    max_len: int
    feed_forward: int
    user_token_mask: str

    @nn.compact
    def __call__(self, x, from_end, segments, is_token, train: bool):
        """x: [R, T, D] item vectors, user vectors at the tokens; from_end: [R, T] 0 =
        the newest item; is_token: [R, T] -> states [R, T, D]."""

        def norm(name):
            return nn.LayerNorm(epsilon=1e-9, name=name)

        def drop(x):
            return Dropout(self.dropout)(x, train)

        def dense(width, name):
            return nn.Dense(width, kernel_init=initializer, name=name)

        width = x.shape[-1]
        table = self.param("positions", initializer, (self.max_len, width))
        items = drop(norm("embedding_norm")(x + table[from_end]))
        x = jnp.where(is_token[..., None], x, items)
        mask = segment_mask(segments, causal=True)  # the token, at the end, sees all
        if self.user_token_mask == "leaky":
            everyone = segment_mask(segments, causal=False)
            mask |= everyone & is_token[:, None, None, :]
        for block in range(self.blocks):
            attention = Attention(self.heads, self.dropout, name=f"attention_{block}")
            a = norm(f"attention_norm_{block}")(x + drop(attention(x, x, mask, train)))
            inner = dense(self.feed_forward * width, f"feed_forward_in_{block}")(a)
            inner = drop(nn.gelu(inner, approximate=False))
            outer = drop(dense(width, f"feed_forward_out_{block}")(inner))
            x = norm(f"feed_forward_norm_{block}")(a + outer)
        return x


class Fusion(nn.Module):
    """[token; graph user] of 2 D -> m D -> D, GELU between."""

    multiple: int

    @nn.compact
    def __call__(self, token, user):
        width = token.shape[-1]
        x = jnp.concatenate([token, user], -1)
        x = nn.Dense(self.multiple * width, name="in", kernel_init=initializer)(x)
        x = nn.gelu(x, approximate=False)
        return nn.Dense(width, name="out", kernel_init=initializer)(x)


@dataclass(frozen=True)
class MRGSRec(System):
    """w_fused: weight of F. token_chunk: tokens whose scores exist at once."""

    w_fused: float = 0.5
    token_chunk: int = 512

    @classmethod
    def from_config(cls, config, sequence, **fields) -> "MRGSRec":
        fields["encoder"] = Encoder(**fields["encoder"], **config.mrgsrec.to_dict())
        own = dict(w_fused=config.loss.w_fused, token_chunk=config.loss.token_chunk)
        return cls(**own, **fields)

    @property
    def mask(self) -> int:
        """Id of the user token. Its vector is the user's row: no `token` is trained."""
        return self.n_items + 1

    @property
    def fusion(self) -> Fusion:
        return Fusion(self.encoder.feed_forward)

    def init(self, seed: int) -> dict:
        """The tables as in CREATE."""
        keys = jax.random.split(jax.random.key(seed), 4)
        params = self.init_tables(keys)
        x, empty = self.first_slots()
        variables = self.encoder.init(keys[1], x, empty, empty, empty > 0, False)
        params |= self.align.init(keys[3], self.dim)
        fusion = self.fusion.init(keys[3], x[0], x[0])["params"]
        return params | {"sequence": variables["params"], "fusion": fusion}

    def trained_groups(self, phase) -> list[str]:
        """Everything is trained at once, but projectors only by an alignment."""
        groups = ["item_table", "user_table", "graph", "sequence", "fusion"]
        return [*groups, "projectors"] if phase.w_align else groups

    def encode(self, params: dict, batch, *, train=False, key=None):
        """States [R * T, D] of packed items and user tokens, and owners of slots."""
        shape, owner = batch.items.shape, sequence_of_slot(batch)
        is_token = batch.items == self.mask
        users = params["user_table"][batch.users[owner]].reshape(*shape, -1)
        x = self.look_up(params["item_table"], batch.items, users)
        length = batch.positions.reshape(-1)[batch.last][owner].reshape(shape)
        states = self.encoder.apply(
            {"params": params["sequence"]},
            x,
            jnp.maximum(length - 1 - batch.positions, 0),
            batch.segments,
            is_token,
            train,
            rngs={"dropout": key} if train else None,
        )
        return states.reshape(-1, self.dim), owner

    def fuse(self, params: dict, tokens, users):
        """[B, D] token outputs and graph users -> [B, D] fused users."""
        return self.fusion.apply({"params": params["fusion"]}, tokens, users)

    def loss(self, phase, params, batch, graph, key, axis_name=None):
        """G and F are means over positions and all items of -log s(target - item), of
        the graph user on propagated items and of the fused user on the items of the
        table."""
        vectors = self.graph_vectors(params, graph, axis_name)
        batch = batch.sequences
        states, owner = self.encode(params, batch, train=True, key=key)
        local = self.local_loss(states, vectors.items, batch, key, axis_name)
        users = vectors.users[batch.users]
        fused = self.fuse(params, states[batch.last], users)
        targets = batch.targets.reshape(-1)
        common = dict(
            n_items=self.n_items, token_chunk=self.token_chunk, axis_name=axis_name
        )
        parts = {
            "local": local,
            "global": losses.all_item_ranking(
                users[owner], vectors.items, targets, **common
            ),
            "fused": losses.all_item_ranking(
                fused[owner], params["item_table"], targets, **common
            ),
        }
        weights = {
            "local": phase.local,
            "global": phase.w_global,
            "fused": self.w_fused,
        }
        if phase.w_align:
            weights["align"] = phase.w_align
            real = (targets > 0).astype(states.dtype)
            parts["align"] = self.align.compare(
                params, states, users[owner], real, axis_name
            )
        return sum(weights[name] * value for name, value in parts.items()), parts

    def query_tables(self, params, graph, *, by_graph: bool, axis_name=None):
        """The graph's users, and the item table to score on."""
        vectors = self.graph_vectors(params, graph, axis_name)
        return (params, vectors.users), params["item_table"]

    def query_vectors(self, params, source, batch, *, by_graph: bool):
        """The fused user [B, D]."""
        states, _ = self.encode(params, batch)
        return self.fuse(params, states[batch.last], source[1][batch.users])
