"""CREATE: one item table under two encoders (docs/models.md#create).

Parameters are a dict of groups: `item_table` [V, D], `sequence` (the transformer),
`user_table` [U, D], `graph` (what else the graph encoder has) and `projectors`. SASRec
alone is this model without a graph; the graph encoders alone are it without a sequence
encoder. Row 0 of the item table is padding, rows 1..I are the items.
"""

import inspect
import math
from dataclasses import dataclass
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp

from create_jax import losses
from create_jax.models.graph_encoder import Shapes, Vectors
from create_jax.models.transformer import pick

READS_EDGES = True  # batches of pairs beside the sequences


@dataclass(frozen=True)
class Model:
    """What is fixed while a program runs: shapes, encoders, the choices of the paper.

    system: this module, or another with init, groups_of, total_loss, query_tables,
      query_vectors, queries_read_graph and READS_EDGES.
    encoder: Linen module (x, positions, segments, train, read) -> states, or None;
      without `read` it makes all states.
    objective: `next` item, or `masked` items, of which a share `mask_share` is hidden.
    token: whether a special slot ends each sequence ([MASK], a user token); its id is
      the row after the items.
    graph: module of the graph encoder (graph_encoder.py), or None.
    graph_settings: the config's `graph` of that name, and `reduce`.
    align, local: the config's `align` and `loss`; `local["kind"]` is `loss.local`.
    input_items, output_items: item vectors the transformer reads and scores with:
      `ego` (the table) or `propagated` (through the graph).
    precision: of float32 products in training, as `jax.default_matmul_precision`;
      alignment and ranking always have the highest.
    random: JAX's name of the generator of dropout and of sampled negatives.
    """

    system: ModuleType
    n_users: int
    n_items: int
    dim: int
    encoder: nn.Module | None
    objective: str
    mask_share: float
    token: bool
    graph: ModuleType | None
    graph_settings: dict
    align: dict
    local: dict
    input_items: str = "ego"
    output_items: str = "ego"
    item_std: float = 0.02
    user_std: float = 0.02
    precision: str = "highest"
    random: str = "threefry2x32"

    @property
    def mask(self) -> int:
        """Id of the special slot that ends each sequence, 0 = none."""
        return self.n_items + 1 if self.token else 0

    @property
    def n_rows(self) -> int:
        return self.n_items + 1 + (self.mask > 0)


class Projector(nn.Module):
    """Linear layers, ReLU between them, before the alignment (docs/choices.md 12)."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for n, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"dense_{n}")(nn.relu(x) if n else x)
        return x


def init(model: Model, seed: int) -> dict:
    """Parameters. Each group has its own key: it starts the same in any model."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = init_tables(model, keys)
    if model.encoder is not None:
        x = jnp.zeros((1, 1, model.dim))
        empty = jnp.zeros((1, 1), jnp.int32)
        variables = model.encoder.init(keys[1], x, empty, empty, False)
        params["sequence"] = variables["params"]
        params |= init_projectors(model, keys[3])
    return params


def init_projectors(model: Model, key) -> dict:
    """The projectors of the two sides of the alignment, where there are any."""
    if not model.align["projector_dims"]:
        return {}
    projector = Projector(tuple(model.align["projector_dims"]))
    x = jnp.zeros((1, model.dim))
    heads = {
        name: projector.init(jax.random.fold_in(key, n), x)["params"]
        for n, name in enumerate(("local", "global"))
    }
    return {"projectors": heads}


def init_tables(model: Model, keys) -> dict:
    """The item table, and the parameters of the graph encoder."""
    shape = (model.n_rows, model.dim)
    table = model.item_std * jax.random.normal(keys[0], shape)
    params = {"item_table": table.at[0].set(0.0)}
    if model.graph is None:
        return params
    shape = (model.n_users, model.dim)
    params["user_table"] = model.user_std * jax.random.normal(keys[2], shape)
    stds = model.user_std, model.item_std
    shapes = Shapes(model.n_users, model.n_rows, model.dim, *stds)
    own_key = jax.random.fold_in(keys[2], 1)
    own = model.graph.init(own_key, shapes, model.graph_settings)
    return params | {"graph": own} if own else params


def total_loss(
    model: Model,
    phase,
    params,
    batch,
    graph,
    key,
    axis_name=None,
):
    """L and its parts for one batch, split over the devices of `axis_name`.

    Args:
      phase, batch: steps.Phase, steps.StepBatch.

    Returns:
      (L, {"local", "global", "align"}), equal on every device.
    """
    parts = {}
    vectors = None
    if uses_graph(model, phase):
        vectors = graph_vectors(model, params, graph, axis_name)
    if phase.local:
        propagated = vectors.items if vectors is not None else None
        source, output = item_vectors(model, params, propagated)
        sequences = batch.sequences
        view = training_view(model, sequences)
        read = hidden_columns(model, phase, sequences.targets)
        states = encode(model, params, source, view, read=read, train=True, key=key)
        learnt = sequences._replace(targets=pick(sequences.targets, read))
        parts["local"] = local_loss(model, states, output, learnt, key, axis_name)
        if phase.w_align:
            if model.objective == "masked":
                states, sequences = masked_states(
                    model, params, source, sequences, view, states, key
                )
            if batch.views is None:
                parts["align"] = alignment_loss(
                    model, params, states, vectors, sequences, axis_name
                )
            else:
                parts["align"] = views_loss(
                    model,
                    params,
                    source,
                    states,
                    sequences,
                    batch.views,
                    key,
                    axis_name,
                )
    if phase.w_global:
        parts["global"] = global_loss(
            model, params, vectors, batch.edges, graph, axis_name
        )
    weights = {"local": phase.local, "global": phase.w_global, "align": phase.w_align}
    return sum(weights[name] * value for name, value in parts.items()), parts


def uses_graph(model: Model, phase) -> bool:
    """Whether a phase reads, and so trains, the graph's vectors."""
    propagates = "propagated" in (model.input_items, model.output_items)
    wanted = phase.w_global > 0 or phase.w_align > 0 or propagates
    return model.graph is not None and wanted


def groups_of(model: Model, phase) -> list[str]:
    """The parameter groups a phase trains, where the model has them."""
    groups = ["item_table"]
    if phase.local:
        groups.append("sequence")
    if uses_graph(model, phase):
        groups += ["user_table", "graph"]
    if phase.w_align and model.align["projector_dims"]:
        groups.append("projectors")
    return groups


def graph_vectors(model: Model, params: dict, graph, axis_name=None) -> Vectors:
    """Vectors of the graph encoder."""
    return model.graph.encode(params, graph, model.graph_settings, axis_name)


def item_vectors(model: Model, params: dict, propagated) -> tuple[jax.Array, jax.Array]:
    """The tables the transformer reads from and scores with."""
    tables = {"ego": params["item_table"], "propagated": propagated}
    return tables[model.input_items], tables[model.output_items]


def encode(
    model: Model, params: dict, table, batch, *, read=None, train=False, key=None
):
    """States of packed sequences: [R, T] -> [R * T, D], or of the columns `read` [R, M]
    of each row -> [R * M, D]."""
    takes_read = "read" in inspect.signature(type(model.encoder).__call__).parameters
    states = model.encoder.apply(
        {"params": params["sequence"]},
        table[batch.items],
        batch.positions,
        batch.segments,
        train,
        *([read] if takes_read else []),
        rngs={"dropout": key} if train else None,
    )
    states = states if takes_read else pick(states, read)
    return states.reshape(-1, model.dim)


def hidden_columns(model: Model, phase, targets):
    """[R, M] the columns of a row's targets, then others: the states that L_local
    reads where items are hidden. None = all.

    M is six deviations above the mean. Of a row with more (one of 10^8) the last ones
    are not learnt from.
    """
    ends_wanted = phase.w_align and model.align["bert_state"] == "last_position"
    length, share = targets.shape[1], model.mask_share
    deviation = math.sqrt(length * share * (1 - share))
    most = math.ceil(length * share + 6 * deviation)
    if model.objective == "next" or ends_wanted or most >= length:
        return None
    return jnp.argsort(targets == 0, axis=1, stable=True)[:, :most]


def training_view(model: Model, batch):
    """What the encoder reads to learn: everything (`next`), or the history with the
    targets hidden and without a [MASK] after it, which only queries have."""
    if model.objective == "next":
        return batch
    segments = jnp.where(batch.items == model.mask, 0, batch.segments)
    items = jnp.where(batch.targets > 0, model.mask, batch.items)
    return batch._replace(items=items, segments=segments)


def query_view(model: Model, batch):
    """Every history with a [MASK] at its end, as a query is posed: one that fills its
    row, and has none, gives its oldest item for it."""
    newest = batch.items[:, -1:]
    full = batch.positions[:, -1:] == batch.items.shape[1] - 1
    full &= newest != model.mask
    mask = jnp.full_like(newest, model.mask)
    shifted = jnp.concatenate([batch.items[:, 1:], mask], axis=1)
    return batch._replace(items=jnp.where(full, shifted, batch.items))


def masked_states(model: Model, params: dict, table, batch, view, states, key):
    """States to align where items were hidden (docs/choices.md 32), and their batch.

    `appended_mask`: one more pass over the whole history with a [MASK] at its end, as a
    query is posed. `last_position`: the states at hand, of the training view; there a
    history ends before its [MASK].
    """
    if model.align["bert_state"] == "appended_mask":
        batch, key = query_view(model, batch), jax.random.fold_in(key, 1)
        return encode(model, params, table, batch, train=True, key=key), batch
    followed = batch.items.reshape(-1)[batch.last] == model.mask
    return states, view._replace(last=batch.last - (followed & (batch.weights > 0)))


def local_loss(model: Model, states, table, batch, key, axis_name=None):
    """Next-item loss over all positions with a target, L_local.

    Args:
      key: for the losses that sample items or directions.
    """
    own, targets = model.local, batch.targets.reshape(-1)
    common = dict(n_items=model.n_items, axis_name=axis_name)
    if own["kind"] == "ce":
        whole = model.n_items <= own["whole_items"]
        return losses.softmax_cross_entropy(
            *(states, table, targets),
            token_chunk=own["token_chunk"],
            item_chunk=model.n_items if whole else own["item_chunk"],
            **common,
        )
    key = jax.random.fold_in(key, 2)
    if own["kind"] == "sce":
        return losses.scalable_cross_entropy(
            states, table, targets, key, **own["sce"], **common
        )
    if own["kind"] == "gsau":
        return losses.gsau(states, table, targets, key, **own["gsau"], **common)
    # Not by the whole step: that learns much more slowly (benchmarks/parity/PARITY.md).
    parts = len(batch.targets) if own["shared_negatives"] else len(targets)
    shape = parts, own["negatives"]
    negatives = jax.random.randint(key, shape, 1, model.n_items + 1)
    kinds = dict(kind=own["kind"], gbce_t=own["gbce_t"])
    return losses.sampled_losses(states, table, targets, negatives, **kinds, **common)


def global_loss(model: Model, params: dict, vectors, batch, graph, axis_name=None):
    """The graph encoder's own loss, L_global, on a batch of pairs."""
    settings = model.graph_settings
    return model.graph.loss(params, vectors, batch, graph, settings, axis_name)


def alignment_loss(
    model: Model, params: dict, states, vectors: Vectors, batch, axis_name=None
):
    """L_BT (or its alternatives) between the state of a user's sequence, h_u, and the
    user's graph vector (CREATE, eqs. 2-3). A signed graph adds mu times the squared
    cross-correlations of h_u with the disinterest vector, all entries."""
    align = model.align
    if align["positions"] == "last":
        local, owner = states[batch.last], jnp.arange(len(batch.users))
        weights = batch.weights
    else:  # every position with its user's vector
        local, owner = states, sequence_of_slot(batch)
        weights = (batch.segments.reshape(-1) > 0).astype(states.dtype)
    ego = align["user_source"] == "ego"
    table = params["user_table"] if ego else vectors.users
    world = table[batch.users][owner]
    if align["stop_grad"] == "global":
        world = jax.lax.stop_gradient(world)
    elif align["stop_grad"] == "local":
        local = jax.lax.stop_gradient(local)
    loss = compare(model, params, local, world, weights, axis_name)
    if vectors.averse_users is not None:
        averse = vectors.averse_users[batch.users][owner]
        if align["stop_grad"] == "global":
            averse = jax.lax.stop_gradient(averse)
        correlation = losses.cross_correlation(local, averse, weights, axis_name)
        loss += align["orthogonality"] * jnp.sum(correlation**2) / model.dim
    return loss


def views_loss(model, params, table, states, batch, views, key, axis_name=None):
    """Aligns the end of each sequence with the end of its view (BT-SR,
    arXiv 2510.26407: another history with the same next item)."""
    key = jax.random.fold_in(key, 3)
    others = encode(model, params, table, views, train=True, key=key)
    weights = batch.weights * views.weights
    ends = states[batch.last], others[views.last]
    return compare(model, params, *ends, weights, axis_name)


def compare(model: Model, params: dict, local, world, weights, axis_name=None):
    """The alignment of `align.kind` between two vectors of each user, [B, D] each."""
    align = model.align
    if align["l2_normalize"]:
        local, world = losses.l2_normalise(local), losses.l2_normalise(world)
    if align["projector_dims"]:
        projector = Projector(tuple(align["projector_dims"]))
        heads = params["projectors"]
        local = projector.apply({"params": heads["local"]}, local)
        world = projector.apply({"params": heads["global"]}, world)
    settings = {
        "barlow_twins": {
            "off_diagonal": align["bt"]["lambda"],
            "reduce": align["bt"]["reduce"],
        },
        "infonce": {"temperature": align["temperature"]},
        "nwj": {"temperature": align["temperature"]},
        "vicreg": align["vicreg"],
    }[align["kind"]]
    align_views = getattr(losses, align["kind"])
    with jax.default_matmul_precision("highest"):
        return align_views(local, world, weights, **settings, axis_name=axis_name)


def sequence_of_slot(batch):
    """[R * T] which of the B sequences owns each slot (any, where the slot is empty).

    Slots of a sequence are contiguous and end at `last`.
    """
    n_slots = batch.items.size
    ends = jnp.where(batch.weights > 0, batch.last, n_slots)
    order = jnp.argsort(ends)
    place = jnp.searchsorted(ends[order], jnp.arange(n_slots))
    return order[jnp.minimum(place, len(order) - 1)]


def _ranks_by_graph(model: Model, by_graph: bool) -> bool:
    return by_graph or "propagated" in (model.input_items, model.output_items)


def queries_read_graph(model: Model, *, by_graph: bool) -> bool:
    """Whether `query_tables` needs the arrays of the graph."""
    propagates = model.graph is not None and model.graph.PROPAGATES
    return propagates and _ranks_by_graph(model, by_graph)


def query_tables(
    model: Model, params: dict, graph, *, by_graph: bool, axis_name=None
) -> tuple[jax.Array, jax.Array]:
    """What queries are read from and scored with, both [*, D]: made once for all.

    Args:
      by_graph: users and items of the graph encoder; otherwise the item vectors that
        the transformer reads and scores with. No user is needed then.
    """
    if not _ranks_by_graph(model, by_graph):
        return params["item_table"], params["item_table"]
    vectors = graph_vectors(model, params, graph, axis_name)
    if by_graph:
        return vectors.users, vectors.items
    return item_vectors(model, params, vectors.items)


def query_vectors(model: Model, params: dict, source, batch, *, by_graph: bool):
    """[B, D] of a batch of queries: the graph's vectors of `batch.users`, or the state
    at the end of each packed history. source: the first of `query_tables`."""
    if by_graph:
        return source[batch.users]
    place = batch.last
    if batch.ends is not None:
        row, segment = place // batch.items.shape[1], batch.segments.reshape(-1)[place]
        place = row * batch.ends.shape[1] + segment - 1
    return encode(model, params, source, batch, read=batch.ends)[place]
