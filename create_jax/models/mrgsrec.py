"""MRGSRec (Gimranov et al. 2024, arXiv 2403.00895): a user token and a fusion of graph
and sequence.

L = CE(positions, propagated items) + w_global G + w_fused F + w_bt InfoNCE(positions,
graph user). Recommends by the fused user on the items of the table, so it needs a user
table. Parameters: the two tables, `sequence` (the transformer) and `fusion`.

With two layers or more the published user token, which sees every item and is seen by
every item, carries the next item back to the position that must predict it
(`user_token_mask: leaky`). `causal` hides it from the items. Edge dropout is left out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from create_jax import losses
from create_jax.models import create
from create_jax.models.transformer import (
    Attention,
    Dropout,
    initializer,
    segment_mask,
)

READS_EDGES = False
OBJECTIVE = "next"
# Settings of CREATE that this system decides itself: anything else is refused.
FIXED = {
    "seq.encoder": "sasrec",
    "warmup.epochs": 0,
    "item_source.input": "ego",
    "item_source.output": "ego",
    "align.partner": "graph",
    "align.positions": "all",
    "align.user_source": "propagated",
    "align.stop_grad": "none",
}


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
    """[token; graph user] of 2 D -> m D -> D, ReLU between."""

    multiple: int

    @nn.compact
    def __call__(self, token, user):
        width = token.shape[-1]
        x = jnp.concatenate([token, user], -1)
        x = nn.relu(nn.Dense(self.multiple * width, name="in")(x))
        return nn.Dense(width, name="out")(x)


def init(model: create.Model, seed: int) -> dict:
    """Parameters; the tables as in CREATE."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = create.init_tables(model, keys)
    x, empty = jnp.zeros((1, 1, model.dim)), jnp.zeros((1, 1), jnp.int32)
    variables = model.encoder.init(keys[1], x, empty, empty, empty > 0, False)
    fusion = Fusion(model.encoder.feed_forward).init(keys[3], x[0], x[0])
    params |= create.init_projectors(model, keys[3])
    return params | {"sequence": variables["params"], "fusion": fusion["params"]}


def groups_of(model: create.Model, phase) -> list[str]:
    """Everything is trained at once, but projectors only by an alignment."""
    groups = ["item_table", "user_table", "graph", "sequence", "fusion"]
    return [*groups, "projectors"] if phase.w_align else groups


def encode(model: create.Model, params: dict, batch, *, train=False, key=None):
    """States [R * T, D] of packed items and user tokens, and the owners of slots."""
    shape, owner = batch.items.shape, create.sequence_of_slot(batch)
    is_token = batch.items == model.mask
    users = params["user_table"][batch.users[owner]].reshape(*shape, -1)
    x = jnp.where(is_token[..., None], users, params["item_table"][batch.items])
    length = batch.positions.reshape(-1)[batch.last][owner].reshape(shape)
    states = model.encoder.apply(
        {"params": params["sequence"]},
        x,
        jnp.maximum(length - 1 - batch.positions, 0),
        batch.segments,
        is_token,
        train,
        rngs={"dropout": key} if train else None,
    )
    return states.reshape(-1, model.dim), owner


def fuse(model: create.Model, params: dict, tokens, users):
    """[B, D] token outputs and graph users -> [B, D] fused users."""
    fusion = Fusion(model.encoder.feed_forward)
    return fusion.apply({"params": params["fusion"]}, tokens, users)


def total_loss(model: create.Model, phase, params, batch, graph, key, axis_name=None):
    """L and its parts; G and F are means over positions and all items of
    -log s(target - item), of the graph user on propagated items and of the fused user
    on the items of the table."""
    vectors = create.graph_vectors(model, params, graph, axis_name)
    batch = batch.sequences
    states, owner = encode(model, params, batch, train=True, key=key)
    local = create.local_loss(model, states, vectors.items, batch, key, axis_name)
    users = vectors.users[batch.users]
    fused = fuse(model, params, states[batch.last], users)
    targets = batch.targets.reshape(-1)
    common = dict(n_items=model.n_items, axis_name=axis_name)
    common["token_chunk"] = model.local["token_chunk"]
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
        "fused": model.local["w_fused"],
    }
    if phase.w_align:
        weights["align"] = phase.w_align
        real = (targets > 0).astype(states.dtype)
        parts["align"] = create.compare(
            model, params, states, users[owner], real, axis_name
        )
    return sum(weights[name] * value for name, value in parts.items()), parts


def queries_read_graph(model: create.Model, *, by_graph: bool) -> bool:
    return True


def query_tables(
    model: create.Model, params: dict, graph, *, by_graph: bool, axis_name=None
):
    """The graph's users, and the item table to score on."""
    vectors = create.graph_vectors(model, params, graph, axis_name)
    return (params, vectors.users), params["item_table"]


def query_vectors(model: create.Model, params: dict, source, batch, *, by_graph: bool):
    """The fused user [B, D]."""
    states, _ = encode(model, params, batch)
    return fuse(model, params, states[batch.last], source[1][batch.users])
