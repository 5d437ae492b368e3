"""CREATE: one item table under two encoders (docs/models.md#create).

Parameters are a dict of groups: `item_table` [I + 1, D], `sequence` (the transformer),
`token` [D] ([MASK], of encoders that hide items), `user_table` [U, D], `graph` (what
else the graph encoder has) and `projectors`. SASRec alone is this model without a
graph; the graph encoders alone are it without a sequence encoder. Row 0 of the item
table is padding, rows 1..I are the items.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax

from create_jax import tables
from create_jax.models import bert4rec
from create_jax.models.system import System
from create_jax.models.transformer import apply_encoder, pick


@dataclass(frozen=True)
class Create(System):
    """input_items, output_items: item vectors the transformer reads and scores with:
    `ego` (the table) or `propagated` (through the graph)."""

    input_items: str = "ego"
    output_items: str = "ego"
    reads_edges: ClassVar[bool] = True
    splits_tables: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config, sequence, **fields) -> "Create":
        if sequence is not None:
            fields["encoder"] = sequence.Encoder(**fields["encoder"])
            fields["objective"] = sequence.OBJECTIVE
            fields["mask_share"] = config.train.mask
        else:
            fields["encoder"] = None
        if sequence is not None and fields["graph"] is not None:
            fields["input_items"] = config.item_source.input
            fields["output_items"] = config.item_source.output
        return cls(**fields)

    def init(self, seed: int) -> dict:
        keys = jax.random.split(jax.random.key(seed), 4)
        params = self.init_tables(keys)
        if self.encoder is None:
            return params
        x, empty = self.first_slots()
        sequence = self.encoder.init(keys[1], x, empty, empty, False)["params"]
        return params | {"sequence": sequence} | self.align.init(keys[3], self.dim)

    def loss(self, phase, params, batch, graph, key, axis_name=None):
        """Of L_local, L_global and L_align, those that the phase weighs."""
        parts, vectors = {}, None
        if self._uses_graph(phase):
            vectors = self.graph_vectors(params, graph, axis_name)
        if phase.local:
            parts |= self._sequence_losses(
                phase, params, vectors, batch, key, axis_name
            )
        if phase.w_global:
            parts["global"] = self.global_loss(
                params, vectors, batch.edges, graph, axis_name
            )
        weights = {
            "local": phase.local,
            "global": phase.w_global,
            "align": phase.w_align,
        }
        return sum(weights[name] * value for name, value in parts.items()), parts

    def _sequence_losses(self, phase, params, vectors, batch, key, axis_name):
        """L_local, and L_align where the phase weighs it."""
        sequences, views = batch.sequences, batch.views
        propagated = vectors.items if vectors is not None else None
        source, output = self.item_vectors(params, propagated)
        view = self.training_view(sequences)
        read = self.hidden_columns(phase, sequences.targets)
        learns = dict(train=True, axis_name=axis_name)
        states = self.encode(params, source, view, read=read, key=key, **learns)
        learnt = sequences._replace(targets=pick(sequences.targets, read))
        parts = {"local": self.local_loss(states, output, learnt, key, axis_name)}
        if not phase.w_align:
            return parts
        if self.objective == "masked":
            states, sequences = self.masked_states(
                params, source, sequences, view, states, key, axis_name
            )
        if views is None:
            parts["align"] = self.align.with_graph(
                params, states, vectors, sequences, axis_name
            )
        else:
            other_key = jax.random.fold_in(key, 3)
            others = self.encode(params, source, views, key=other_key, **learns)
            parts["align"] = self.align.with_views(
                params, states, others, sequences, views, axis_name
            )
        return parts

    def _uses_graph(self, phase) -> bool:
        """Whether a phase reads, and so trains, the graph's vectors."""
        propagates = "propagated" in (self.input_items, self.output_items)
        wanted = phase.w_global > 0 or phase.w_align > 0 or propagates
        return self.graph is not None and wanted

    def trained_groups(self, phase) -> list[str]:
        groups = ["item_table"]
        if phase.local:
            groups += ["sequence", "token"]
        if self._uses_graph(phase):
            groups += ["user_table", "graph"]
        if phase.w_align:
            groups.append("projectors")
        return groups

    def item_vectors(self, params: dict, propagated) -> tuple[jax.Array, jax.Array]:
        """The tables the transformer reads from and scores with."""
        tables = {"ego": params["item_table"], "propagated": propagated}
        return tables[self.input_items], tables[self.output_items]

    def encode(
        self,
        params,
        table,
        batch,
        *,
        read=None,
        train=False,
        key=None,
        axis_name=None,
    ):
        """States of packed sequences: [R, T] -> [R * T, D], or of the columns `read`
        [R, M] of each row -> [R * M, D]."""
        x = self.look_up(table, batch.items, params.get("token"), axis_name)
        own = params["sequence"]
        settings = dict(read=read, train=train, key=key)
        return apply_encoder(self.encoder, own, x, batch, **settings)

    def hidden_columns(self, phase, targets):
        """[R, M] the columns whose states L_local reads; None = all."""
        ends_wanted = phase.w_align and self.align.bert_state == "last_position"
        if self.objective == "next" or ends_wanted:
            return None
        return bert4rec.hidden_columns(targets, self.mask_share)

    def training_view(self, batch):
        """The input in training: everything, unless items are hidden."""
        if self.objective == "next":
            return batch
        return bert4rec.training_view(batch, self.mask)

    def masked_states(self, params, table, batch, view, states, key, axis_name=None):
        """States to align where items were hidden (docs/choices.md 32), and their
        batch.

        `appended_mask`: one more pass over the whole history with a [MASK] at its end,
        as a query is posed. `last_position`: the states at hand, of the training view.
        """
        if self.align.bert_state == "last_position":
            return states, bert4rec.ends_in_view(batch, view, self.mask)
        batch, key = bert4rec.query_view(batch, self.mask), jax.random.fold_in(key, 1)
        learns = dict(train=True, axis_name=axis_name)
        return self.encode(params, table, batch, key=key, **learns), batch

    def global_loss(self, params: dict, vectors, batch, graph, axis_name=None):
        """The graph encoder's own loss, L_global, on a batch of pairs."""
        settings = self.graph_settings
        return self.graph.loss(params, vectors, batch, graph, settings, axis_name)

    def _ranks_by_graph(self, by_graph: bool) -> bool:
        return by_graph or "propagated" in (self.input_items, self.output_items)

    def queries_read_graph(self, *, by_graph: bool) -> bool:
        propagates = self.graph is not None and self.graph.PROPAGATES
        return propagates and self._ranks_by_graph(by_graph)

    def query_tables(self, params, graph, *, by_graph: bool, axis_name=None):
        """The graph's users and items where they rank, else the item vectors that the
        transformer reads and scores with: no user is needed then."""
        if not self._ranks_by_graph(by_graph):
            return params["item_table"], params["item_table"]
        vectors = self.graph_vectors(params, graph, axis_name)
        if by_graph:
            return vectors.users, vectors.items
        return self.item_vectors(params, vectors.items)

    def query_vectors(self, params, source, batch, *, by_graph: bool, axis_name=None):
        """The graph's vectors of `batch.users`, or the state at the end of each packed
        history."""
        if by_graph:
            return tables.look_up(source, batch.users, axis_name)
        place = batch.last
        if batch.ends is not None:
            row = place // batch.items.shape[1]
            segment = batch.segments.reshape(-1)[place]
            place = row * batch.ends.shape[1] + segment - 1
        given = dict(read=batch.ends, axis_name=axis_name)
        return self.encode(params, source, batch, **given)[place]
