"""The alignment of a user's two vectors, L_BT and its alternatives (CREATE, eqs. 2-3).

`align.kind` names the loss. This module chooses its inputs: the states of the sequence,
the vector of the user and the projectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from create_jax import losses, named
from create_jax.models.graph_encoder import Vectors
from create_jax.models.transformer import sequence_of_slot
from create_jax.tables import look_up


class Projector(nn.Module):
    """Linear layers, ReLU between them, before the alignment (docs/choices.md 12)."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for n, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"dense_{n}")(nn.relu(x) if n else x)
        return x


@dataclass(frozen=True)
class Alignment:
    """The config's `align`, its loss resolved.

    loss: (a [B, D], b [B, D], weights [B], axis_name=) -> scalar; None = no alignment.
    bert_state: `appended_mask` or `last_position`, of encoders that hide items.
    orthogonality: mu, of the states and a signed graph's disinterest.
    views: both sides are states of sequences (BT-SR), which share a projector.
    """

    loss: Callable | None
    positions: str
    user_source: str
    stop_grad: str
    projector_dims: tuple[int, ...]
    l2_normalize: bool
    bert_state: str
    orthogonality: float
    views: bool = False

    @classmethod
    def from_config(cls, align) -> "Alignment":
        """InputError where no loss of the name `align.kind` is found."""
        loss = find(align.kind)
        if loss is not None:
            renamed = losses.RENAMED.get(align.kind, {})
            given = named.arguments(align.to_dict(), align.kind, loss, renamed)
            loss = partial(loss, **given)
        same = ("positions", "user_source", "stop_grad", "l2_normalize", "bert_state")
        return cls(
            loss=loss,
            projector_dims=tuple(align.projector_dims),
            orthogonality=align.orthogonality,
            views=align.partner == "same_target",
            **{name: align[name] for name in same},
        )

    def init(self, key, dim: int) -> dict:
        """The projectors of the two sides, where there are any; one for two views."""
        if not self.projector_dims:
            return {}
        projector, x = Projector(self.projector_dims), jnp.zeros((1, dim))
        heads = {
            name: projector.init(jax.random.fold_in(key, n), x)["params"]
            for n, name in enumerate(("local", "global")[: 1 if self.views else 2])
        }
        return {"projectors": heads}

    @jax.default_matmul_precision("highest")
    def compare(self, params: dict, local, world, weights, axis_name=None):
        """The loss between two vectors of each user, [B, D] each.

        Products have the highest precision, here and in `with_graph`: rounded ones blur
        a correlation.
        """
        if self.l2_normalize:
            local, world = losses.l2_normalise(local), losses.l2_normalise(world)
        if self.projector_dims:
            projector, heads = Projector(self.projector_dims), params["projectors"]
            other = heads["local" if self.views else "global"]
            local = projector.apply({"params": heads["local"]}, local)
            world = projector.apply({"params": other}, world)
        return self.loss(local, world, weights, axis_name=axis_name)

    @jax.default_matmul_precision("highest")
    def with_graph(self, params: dict, states, vectors: Vectors, batch, axis_name=None):
        """The loss between states of the sequences, h_u, and their users' graph
        vectors. A signed graph adds mu times the squared cross-correlations of h_u with
        the disinterest vector, all entries, over D.

        Args:
          states: [R * T, D] of the packed batch.
        """
        if self.positions == "last":
            local, owner = states[batch.last], jnp.arange(len(batch.users))
            weights = batch.weights
        else:  # every position with its user's vector
            local, owner = states, sequence_of_slot(batch)
            weights = (batch.segments.reshape(-1) > 0).astype(states.dtype)
        ego = self.user_source == "ego"
        table = params["user_table"] if ego else vectors.users
        world = look_up(table, batch.users, axis_name)[owner]
        if self.stop_grad == "global":
            world = jax.lax.stop_gradient(world)
        elif self.stop_grad == "local":
            local = jax.lax.stop_gradient(local)
        loss = self.compare(params, local, world, weights, axis_name)
        if vectors.averse_users is not None:
            averse = vectors.averse_users[batch.users][owner]
            if self.stop_grad == "global":
                averse = jax.lax.stop_gradient(averse)
            correlation = losses.cross_correlation(local, averse, weights, axis_name)
            loss += self.orthogonality * jnp.sum(correlation**2) / states.shape[1]
        return loss

    def with_views(self, params: dict, states, others, batch, views, axis_name=None):
        """The loss between the end of each sequence and the end of its view (BT-SR,
        arXiv 2510.26407: another history with the same next item).

        Args:
          states, others: of the sequences and of the views.
        """
        weights = batch.weights * views.weights
        ends = states[batch.last], others[views.last]
        return self.compare(params, *ends, weights, axis_name)


def find(kind: str) -> Callable | None:
    """The loss of `align.kind`, None for none."""
    table = {"none": None, **losses.ALIGNMENTS}
    found = named.find("align.kind", kind, table, "function of two views")
    if found is not None:
        named.check_call("align.kind", kind, found, 3, axis_name=None)
    return found
