"""Batches for the steps of each phase, planned on the host.

A feed is made once for a phase. `plan(epoch)` is a pure function of (seed, epoch), and
`batch(plan, chunk)` gives the stacked arrays of one dispatch.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from create_jax.data import graph as graphs
from create_jax.data import packing
from create_jax.data.streams import stream
from create_jax.errors import InputError
from create_jax.models.graph_encoder import Draw
from create_jax.steps import Phase, StepBatch


class Feed:
    """Batches of one phase.

    Args:
      train: the training Interactions.
      rows, pairs: of the user-item graph, None without one.
      shards: devices that share a step.
      own: the numbers of the shards whose sequences `batch` holds; None = all.
    """

    def __init__(
        self, config, model, phase: Phase, train, rows, pairs, shards: int, own=None
    ):
        self.config, self.model, self.shards, self.own = config, model, shards, own
        self.rows, self.pairs = rows, pairs
        self.n_items, self.seed = train.n_items, config.seed
        self.with_edges = phase.w_global > 0 and model.reads_edges
        self.sequences, self.blocks = None, 1
        self.train, self.view_layout = train, None
        limit = config.train.chunk
        if phase.local:
            self.sequences = packing.training_sequences(
                train,
                config.seq.max_len,
                model.mask,
                hides=model.objective == "masked",
            )
            views = phase.w_align and config.align.partner == "same_target"
            if not (views or self.with_edges):  # which are drawn for a whole epoch
                self.blocks = packing.count_blocks(len(self.sequences.owners))
            shape = dict(
                batch=config.train.batch,
                row_length=config.seq.max_len,
                shards=shards,
                chunk=limit,
            )
            if self.blocks > 1:
                self.layout = packing.make_block_layout(
                    self.sequences, self.blocks, **shape
                )
            else:
                self.layout = packing.make_layout(self.sequences.lengths, **shape)
            self.chunk_steps = self.layout.chunk
            self.chunks = self.blocks * self.layout.steps // self.chunk_steps
            if views:
                self.view_layout = self._layout_of_views()
        else:
            steps = -(-len(pairs.users) // config.graph.batch_size)
            self.chunks, self.chunk_steps = packing.equal_chunks(steps, limit)
        self.steps = self.chunks * self.chunk_steps

    def plan(self, epoch: int):
        """Everything random about an epoch: (sequences, their plan, items to hide,
        batches of pairs, (plan, sequences) of the views); of many sequences the Blocks
        that make this for each block."""
        if self.blocks > 1:
            return Blocks(partial(self._plan, epoch), self.blocks)
        return self._plan(epoch)

    def _plan(self, epoch: int, *block: int):
        plan = hidden = edges = views = None
        sequences, seed = self.sequences, self.seed
        if block:
            n = len(sequences.owners)
            index = packing.draw_block(n, self.blocks, seed, epoch, *block)
            sequences = sequences.some(index)
        if sequences is not None:
            lengths = sequences.lengths
            plan = packing.plan_epoch(lengths, self.layout, seed, epoch, *block)
            if self.model.objective == "masked":
                share = self.config.train.mask
                hidden = packing.hide(sequences, share, seed, epoch, *block)
        if self.with_edges:
            edges = self._edges(plan, epoch)
        if self.view_layout is not None:
            others = self._views(epoch)
            views = packing.pack_along(plan, others.lengths, self.view_layout), others
        return sequences, plan, hidden, edges, views

    def _views(self, epoch):
        rng = stream("view", self.seed, epoch)
        return packing.same_target(
            self.train, self.sequences, self.config.seq.max_len, rng
        )

    def _layout_of_views(self):
        """As many rows as three epochs need, and one more."""
        lengths, length = self.sequences.lengths, self.config.seq.max_len
        rows = 0
        for epoch in range(3):
            plan = packing.plan_epoch(lengths, self.layout, self.seed, epoch)
            views = self._views(epoch)
            rows = max(rows, packing.rows_along(plan, views.lengths, length))
        return self.layout._replace(rows=rows + 1)

    def _edges(self, plan, epoch):
        graph = self.config.graph
        size = graph.batch_size
        if plan is None:  # one pass over the pairs
            size = -(-len(self.pairs.users) // self.steps)
        owners = None
        if graph.batch_source == "batch_users" and plan is not None:
            index = plan.index.reshape(self.steps, -1)
            owners = np.where(index < 0, -1, self.sequences.owners[index])
        draw = Draw(
            steps=self.steps,
            size=-(-size // self.shards) * self.shards,
            n_items=self.n_items,
            seed=self.seed,
            epoch=epoch,
            joint=plan is not None,
            owners=owners,
        )
        settings = self.model.graph_settings
        return self.model.graph.batches(self.rows, self.pairs, settings, draw)

    def batch(self, plan, chunk: int) -> StepBatch:
        """The stacked arrays of dispatch `chunk`: sequences and views of the own
        shards, pairs of all."""
        if isinstance(plan, Blocks):
            block, chunk = divmod(chunk, self.chunks // self.blocks)
            plan = plan.of(block)
        start, stop = chunk * self.chunk_steps, (chunk + 1) * self.chunk_steps
        sequences, packed, hidden, edges, views = plan
        if packed is not None:
            part = packing.steps_of(packed, start, stop, self.own)
            packed = packing.fill(
                part,
                sequences,
                self.layout,
                shift=hidden is None,
                hidden=hidden,
            )
        if edges is not None:
            edges = type(edges)(*(field[start:stop] for field in edges))
        if views is not None:
            part = packing.steps_of(views[0], start, stop, self.own)
            views = packing.fill(part, views[1], self.view_layout)
        return StepBatch(packed, edges, views)


class Blocks:
    """The plans of an epoch in blocks, pure in their number: each is made when it is
    asked for, and the next one meanwhile in another thread."""

    THREAD = ThreadPoolExecutor(1)

    def __init__(self, make: Callable, n: int):
        self.make, self.n, self.made = make, n, {}

    def of(self, block: int):
        wanted = range(block, min(block + 2, self.n))
        self.made = {
            number: self.made.get(number) or self.THREAD.submit(self.make, number)
            for number in wanted
        }
        return self.made[block].result()


def check_sequences(train) -> None:
    """Refuses training rows without a sequence.

    Raises:
      InputError: no user has two rows.
    """
    begin, end = train.spans()
    if not (end - begin >= 2).any():
        raise InputError(
            f"none of the {train.n_users:,} users has two training rows, so that no "
            "sequence has a next item to learn; bring longer histories, keep repeats "
            "(data.drop_repeats=False), or leave more rows to training: by "
            "split.validation=none, or split.q_test and split.q_val"
        )


def make_graph(config, model, train, shards: int, parts: int = 1):
    """(rows of the graph, their pairs, the encoder's arrays); (None, None, ()) without.

    The rows are those of the config's choice (docs/choices.md 19).

    Args:
      shards: devices that share the terms of a propagation.
      parts: devices that share the rows of tables; users and items without a pair fill
        the arrays up to a multiple.
    """
    if model.graph is None:
        return None, None, ()
    choice = dict(last_n=config.graph.last_n, last_frac=config.graph.last_frac)
    rows = graphs.graph_rows(train, **choice)
    pairs = graphs.make_pairs(rows)
    n_users, n_rows = (-(-n // parts) * parts for n in (model.n_users, model.n_rows))
    more = n_users - model.n_users
    filled = pairs._replace(offsets=np.pad(pairs.offsets, (0, more), mode="edge"))
    arrays = model.graph.prepare(rows, filled, n_rows, model.graph_settings, shards)
    return rows, pairs, arrays
