"""Ranks the whole catalogue for every query of a Holdout, streaming on the devices."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from create_jax import cluster, metrics, parallel, steps, tables
from create_jax.data import packing
from create_jax.data.splits import Holdout
from create_jax.models.system import System
from create_jax.parallel import ALL, MODEL

NOT_RANKED = np.iinfo(np.int32).max
# Most rows of whole histories in a dispatch of more than one step: 8 MiB of pairs.
DISPATCH_ROWS = 2**20


class Seen(NamedTuple):
    """The whole histories of a step's queries, as H rows in each shard.

    row: [H] which of the shard's B queries has the item in its history; B = none.
    item: [H] the item.

    The successive queries of a user read one history up to different places. Where that
    makes H much smaller, a history stands here once, for all queries of its user:

    at: [H] the place of the item in the history of `row`.
    owner: [B] the query whose rows are read. length: [B] how many places of them.

    Otherwise these three are None.
    """

    row: np.ndarray
    item: np.ndarray
    at: np.ndarray | None = None
    owner: np.ndarray | None = None
    length: np.ndarray | None = None


class Queries(NamedTuple):
    """The part of a Holdout that one dispatch ranks, stacked [S, ...].

    histories: packed, the newest items of each query. targets: [B] its first target.
    query: [B] its number, -1 = filler. seen: whole histories; None = not needed.
    """

    histories: packing.Batch
    targets: np.ndarray
    query: np.ndarray
    seen: Seen | None


class Ranking(NamedTuple):
    """How the Q queries of a Holdout came out.

    ranks: [Q] candidates before the first target; NOT_RANKED: hidden, or unknown.
    tied: [Q] bool, another candidate has the score of that target.
    metrics: means over queries of every metric at every cut-off, as fractions.
    top: [Q, K] best items, 0 = nothing left; None where lists are not kept.
    logs: [Q] log-likelihoods of the targets that are ranked; zeros if not asked for.
    """

    ranks: np.ndarray
    tied: np.ndarray
    metrics: dict[str, float]
    top: np.ndarray | None
    logs: np.ndarray


class Evaluator:
    """Ranks the queries of a Holdout: packed and compiled once, run many times.

    Args:
      score: (params, graph) -> (Queries of one step -> [B, V] scores); what all queries
        share, a propagation say, is made in the first call. Candidates of equal scores
        come in the order of `holdout.places`. On a mesh that splits tables the scores
        are of the group's queries and of the own rows, [M B, V / M].
      ks: cut-offs of the metrics. measures: the metrics, by name.
      uncut: those of `metrics.UNCUT` to measure too; queries have one target each.
      max_len: slots of a history that a sequence encoder reads, the newest items.
      filter_seen: do not rank the items of the history.
      whole: the score reads whole histories (`set_seen`).
      lists: make the lists of the largest cut-off, for the coverage. They are made
        anyway where a query has several targets.
      keep_lists: return the lists, Q x K numbers.
      batch: queries a step, over all devices.
      mask: id of a special item to end each history with; 0 = none.
      chunk: most steps of a dispatch.
    """

    def __init__(
        self,
        holdout: Holdout,
        score: Callable,
        mesh,
        *,
        ks,
        measures=metrics.METRICS,
        uncut=(),
        max_len: int,
        filter_seen: bool,
        whole: bool = False,
        lists: bool = True,
        keep_lists: bool = False,
        batch: int = 256,
        mask: int = 0,
        chunk: int = 32,
    ):
        self.holdout, self.score, self.mesh, self.ks = holdout, score, mesh, tuple(ks)
        self.measures, self.uncut = measures, tuple(uncut)
        self.filter_seen, self.keep_lists = filter_seen, keep_lists
        self.several = len(holdout.targets) > holdout.n_queries
        n_columns = len(holdout.candidates)
        make_lists = lists or keep_lists or self.several
        self.top_k = min(max(self.ks), n_columns) if make_lists else 0

        newest = holdout.end - max_len + (mask > 0)
        begin = np.maximum(holdout.begin, newest)
        numbers = np.arange(holdout.n_queries, dtype=np.int32)
        sequences = packing.Sequences(numbers, holdout.log, begin, holdout.end, mask)
        self.sequences, lengths = sequences, sequences.lengths
        layout = packing.make_layout(
            lengths, batch=batch, row_length=max_len, shards=mesh.size, chunk=chunk
        )
        self.plan = packing.plan_epoch(lengths, layout, seed=0, epoch=0)
        ends, chunk = int(self.plan.segment.max()), layout.chunk
        self.shared, self.seen_rows = False, 0
        if filter_seen or whole:
            self.shared, self.seen_rows = self._room_for_histories()
            fits = max(1, DISPATCH_ROWS // (self.seen_rows * mesh.size))
            chunk = max(c for c in range(1, min(chunk, fits) + 1) if chunk % c == 0)
        self.layout = layout._replace(ends=ends, chunk=chunk)

        places = np.arange(n_columns) if holdout.places is None else holdout.places
        self.axes = parallel.batch_axes(mesh)
        parts = parallel.parts_of_tables(mesh)
        catalogue = make_catalogue(holdout.candidates, places, parts)
        spec = P(MODEL) if parts > 1 else P()
        self._catalogue = parallel.place(mesh, catalogue, spec)
        self.own, self.wishes = parallel.own_shards(mesh), parallel.wishes(mesh)
        self._program = None
        # Small enough to stay on the devices between epochs.
        self._resident = None

    # --- queries ----------------------------------------------------------------------

    def chunks(self):
        """Queries of each dispatch, on the devices."""
        if self._resident is not None:
            return self._resident
        starts = range(0, self.layout.steps, self.layout.chunk)
        made = (self._queries(start) for start in starts)
        if self.layout.steps <= 4 * self.layout.chunk:
            self._resident = made = list(made)
        return made

    def _queries(self, start: int) -> Queries:
        stop = start + self.layout.chunk
        plan = packing.steps_of(self.plan, start, stop, self.own)
        batch = packing.fill(plan, self.sequences, self.layout)
        holdout = self.holdout
        query = np.where(batch.weights > 0, batch.users, -1)
        targets = holdout.targets[holdout.offsets[np.maximum(query, 0)]]
        batch = batch._replace(users=holdout.users[np.maximum(query, 0)])
        seen = self._seen(plan) if self.seen_rows else None
        queries = Queries(batch, targets.astype(np.int32), query, seen)
        return parallel.place_own(self.mesh, queries, P(None, self.axes))

    def _room_for_histories(self) -> tuple[bool, int]:
        """(whether queries share histories, most rows of a shard)."""
        alone, shared = (
            int(np.bincount(bins, size).max())
            for bins, _, _, size, _ in (
                self._histories(self.plan, share) for share in (False, True)
            )
        )
        # Reading shared rows goes over the scores once more: not for a few rows less.
        share = alone > 4 * shared
        return share, shared if share else alone

    def _histories(self, plan, share: bool):
        """The histories that the shards of a plan hold, shard after shard.

        Returns:
          bins, row, begin, size: [n] the shard (of all steps), query in it, and rows of
            the log. of: for each real query of the plan, which history it reads.
        """
        index = plan.index.reshape(-1, plan.index.shape[-1])
        bins, row = np.nonzero(index >= 0)
        number = index[bins, row]
        begin, size = self.holdout.begin[number], self.holdout.end[number]
        size = size - begin
        if not share:
            return bins, row, begin, size, np.arange(len(bins))
        key = bins * (len(self.holdout.log) + 1) + begin
        _, first, of = np.unique(key, return_index=True, return_inverse=True)
        longest = np.zeros(len(first), size.dtype)
        np.maximum.at(longest, of, size)
        return bins[first], row[first], begin[first], longest, of

    def _seen(self, plan) -> Seen:
        steps_, shards, width = plan.index.shape
        bins, row, begin, size, of = self._histories(plan, self.shared)
        within = packing.count_within(size)
        n_bins = steps_ * shards
        per_bin = np.bincount(bins, size, n_bins).astype(np.int64)
        to = np.repeat(bins, size), packing.count_within(per_bin)

        def padded(values, fill=0):
            out = np.full((n_bins, self.seen_rows), fill, np.int32)
            out[to] = values
            return out.reshape(steps_, -1)

        rows = padded(np.repeat(row, size), width)
        items = padded(self.holdout.log[np.repeat(begin, size) + within])
        if not self.shared:
            return Seen(rows, items)
        real = plan.index >= 0
        number = plan.index[real]
        owner, length = (np.zeros(plan.index.shape, np.int32) for _ in range(2))
        owner[real] = row[of]
        length[real] = (self.holdout.end - self.holdout.begin)[number]
        owner, length = (x.reshape(steps_, -1) for x in (owner, length))
        return Seen(rows, items, padded(within), owner, length)

    # --- ranking ----------------------------------------------------------------------

    def run(self, params, graph) -> Ranking:
        """Ranks every query. Two dispatches at most are on the devices."""
        holdout, n = self.holdout, self.holdout.n_queries
        ranks, tied = np.full(n, NOT_RANKED, np.int32), np.zeros(n, bool)
        kept = np.zeros((n, self.top_k), np.int32) if self.keep_lists else None
        shown = np.zeros((len(self.ks), len(holdout.candidates)), bool)
        values = {k: {} for k in self.ks}
        logs = np.zeros(n)
        for query, some_ranks, some_tied, top, log in self._outputs(params, graph):
            real = query >= 0
            number = query[real]
            ranks[number], tied[number] = some_ranks[real], some_tied[real]
            if log is not None:
                logs[number] = log[real]
            if top is None:
                continue
            top = top[real]
            if self.keep_lists:
                kept[number] = top
            for items, k in zip(shown, self.ks, strict=True):
                items[top[:, :k]] = True
                if self.several:
                    asked = holdout.targets_of(number)
                    of = metrics.from_lists(top, *asked, k, self.measures)
                    for name, found in of.items():
                        values[k].setdefault(name, np.zeros(n))[number] = found
        means = {}
        for items, k in zip(shown, self.ks, strict=True):
            found = values[k]
            if not self.several:
                found = metrics.from_ranks(ranks, k, self.measures)
            means |= {name: float(value.mean()) for name, value in found.items()}
            if self.top_k:
                means[f"coverage@{k}"] = metrics.coverage(items)
        return Ranking(ranks, tied, means | self._uncut(ranks, logs), kept, logs)

    def _uncut(self, ranks, logs) -> dict[str, float]:
        """The metrics of whole rankings that were asked for."""
        found, candidates = {}, int(self.holdout.candidates.sum())
        for name in self.uncut:
            if name in metrics.BY_RANK:
                found[name] = float(metrics.BY_RANK[name](ranks, candidates).mean())
            else:  # a target that is not ranked has none, with any scores
                ranked = ranks < NOT_RANKED
                found[name] = float(logs[ranked].sum() / max(ranked.sum(), 1))
        return found

    def _outputs(self, params, graph):
        """(query, *what `_compiled` returns) of a dispatch, fetched while the next one
        runs.

        Raises:
          Leaving: a process was asked to leave.
        """
        under_way = None
        for queries in self.chunks():
            program = self._compiled(params, graph)
            outputs = program(params, graph, self._catalogue, queries)
            wish = self.wishes(cluster.LEAVE * cluster.asked_to_leave())
            # Gathered before the next dispatch, which would go first otherwise.
            outputs = parallel.whole(self.mesh, (wish, queries.query, *outputs))
            if under_way is not None:
                yield _settled(under_way)
            under_way = outputs
        yield _settled(under_way)

    def lower(self, params, graph):
        """The lowered program of a dispatch."""
        queries = next(iter(self.chunks()))
        program = self._compiled(params, graph)
        return program.lower(params, graph, self._catalogue, queries)

    def _compiled(self, params, graph) -> Callable:
        """(params, graph, catalogue, Queries) -> (ranks, tied, top, logs) of all steps.

        logs: log of the target's share in the softmax over what is ranked; None where
        not asked for.
        """
        if self._program is None:
            split, axes = tables.is_split(self.axes), self.axes
            step = self._step_by_rows if split else self._step
            queries = P(None, axes)
            specs = (P(), steps.graph_specs(graph), P(), queries)
            if split:
                of_params = steps.group_specs(params, axes)
                specs = of_params, steps.graph_specs(graph, axes), P(MODEL), queries

            def run(params, graph, catalogue, queries):
                # Rounded products would change ranks: bfloat16 a sixth of them.
                with jax.default_matmul_precision("highest"):
                    score_queries = self.score(params, graph)
                    return lax.map(
                        lambda some: step(score_queries(some), catalogue, some),
                        queries,
                    )

            self._program = parallel.compile_step(run, self.mesh, specs, queries)
        return self._program

    def _step(self, scores, catalogue, queries):
        bias, places, order = catalogue
        scores = scores + bias
        if self.filter_seen:
            scores = set_seen(queries, scores, -jnp.inf)
        target = queries.targets[:, None]
        own = jnp.take_along_axis(scores, target, 1)
        equal = scores == own
        before = (scores > own) | (equal & (places < places[target]))
        before, equal = _sum_rows(before, equal)
        hit = own[:, 0] > -jnp.inf
        ranks = jnp.where(hit, before, NOT_RANKED)
        tied = hit & (equal > 1)
        logs = top = None
        if "log_likelihood" in self.uncut:
            logs = own[:, 0] - jax.nn.logsumexp(scores, axis=1)
        if self.top_k:
            best, top = _best(scores, self.top_k, places, order)
            top = jnp.where(best > -jnp.inf, top, 0)
        return ranks, tied, top, logs

    def _step_by_rows(self, scores, catalogue, queries):
        """The same of a group's queries on the rows of one device. Each device ends
        with its own queries."""
        bias, places, near, order = catalogue
        scores = scores + bias
        rows, columns = scores.shape
        parts = rows // len(queries.query)
        if self.filter_seen:
            seen = _seen_by_group(queries, places)
            scores = set_seen(queries._replace(seen=seen), scores, -jnp.inf)
        target = tables.of_group(queries.targets, ALL)
        at = tables.places(places, target)[:, None]
        given = dict(mode="fill", fill_value=0)
        own = lax.psum(jnp.take_along_axis(scores, at, 1, **given), MODEL)
        place = lax.psum(tables.own_rows(places, target), MODEL)[:, None]
        equal = scores == own
        before = (scores > own) | (equal & (places < place))
        counts = jnp.stack(_sum_rows(before, equal)).reshape(2, parts, -1)
        before, equal = lax.psum_scatter(counts, MODEL, scatter_dimension=1)
        own = own.reshape(parts, -1)[lax.axis_index(MODEL)]
        hit = own > -jnp.inf
        ranks, tied = jnp.where(hit, before, NOT_RANKED), hit & (equal > 1)
        logs = None
        if "log_likelihood" in self.uncut:
            part = jax.nn.logsumexp(scores, axis=1)
            largest = lax.pmax(part, MODEL)
            total = lax.psum_scatter(jnp.exp(part - largest), MODEL, tiled=True)
            largest = largest.reshape(parts, -1)[lax.axis_index(MODEL)]
            logs = own - largest - jnp.log(total)
        if not self.top_k:
            return ranks, tied, None, logs
        best, top = _best(scores, min(self.top_k, columns), near, order)
        item = lax.axis_index(MODEL) * columns + top
        found = -best, places[top], item

        def met(x):
            """The own queries' candidates of all devices: [B, M K]."""
            x = x.reshape(parts, -1, x.shape[1])
            x = lax.all_to_all(x, MODEL, 0, 0)
            return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)

        best, _, item = lax.sort(tuple(map(met, found)), num_keys=2)
        top = jnp.where(best < jnp.inf, item, 0)[:, : self.top_k]
        return ranks, tied, top, logs


def make_catalogue(candidates: np.ndarray, places: np.ndarray, parts: int) -> tuple:
    """What ranks items beside their scores, [V] each: 0 or, for what is no candidate,
    -inf; the places of equals; the columns in that order.

    For tables in parts, V filled up: between the last two the places among the rows of
    a part, and the columns are of a part too.
    """
    bias = np.where(candidates, 0.0, -np.inf).astype(np.float32)
    if parts == 1:
        return bias, places.astype(np.int32), np.argsort(places).astype(np.int32)
    missing = -len(places) % parts
    bias = np.pad(bias, (0, missing), constant_values=-np.inf)
    places = np.r_[places, len(places) + np.arange(missing)]
    order = np.argsort(places.reshape(parts, -1), axis=1)
    near = np.argsort(order, axis=1)
    whole = (x.reshape(-1).astype(np.int32) for x in (places, near, order))
    return bias, *whole


def _settled(outputs):
    """Waits for the outputs of a dispatch."""
    wishes, *outputs = jax.device_get(outputs)
    if wishes.max() == cluster.LEAVE:
        raise cluster.Leaving
    return outputs


def _sum_rows(*flags):
    """Sums [B] of several [B, V] in one pass; on CPUs XLA makes one for each."""
    flags = tuple(x.astype(jnp.int32) for x in flags)
    zeros = (jnp.int32(0),) * len(flags)
    return lax.reduce(flags, zeros, lambda x, y: tuple(map(jnp.add, x, y)), (1,))


def _best(scores, k: int, places, order):
    """Scores and columns [B, K] by falling score, then rising place.

    `top_k` takes the lowest of equal columns. One more than k says whether others wait
    behind the last: then the columns are put in order first, which takes as long again.
    """
    columns = scores.shape[1]
    best, top = lax.top_k(scores, min(k + 1, columns))
    # XLA puts a fast top_k in the place of a sort and its slice, and does not know it
    # where other slices join. (A barrier around both values ends XLA itself.)
    best = lax.optimization_barrier(best)
    # Equal neighbours have one number; one key is sorted five times as fast as two.
    level = jnp.cumsum(best[:, 1:] != best[:, :-1], axis=1, dtype=jnp.uint32)
    keys = jnp.pad(level, ((0, 0), (1, 0))), places[top].astype(jnp.uint32)
    if best.shape[1] * columns < 2**32:
        keys = (keys[0] * columns + keys[1],)
    top = order[lax.sort(keys, num_keys=len(keys))[-1] % columns]
    if k < columns:
        last = best[:, k - 1]
        cut = (last == best[:, k]) & (last > -jnp.inf)
        top = lax.cond(
            cut.any(),
            lambda: order[lax.top_k(scores[:, order], k)[1]],
            lambda: top[:, :k],
        )
    return best[:, :k], top


def _seen_by_group(queries: Queries, table) -> Seen:
    """The histories of a group's queries, and their items as rows of this device.

    Args:
      table: [V / M, ...], for its length.
    """
    seen, n = queries.seen, len(queries.query)
    start = lax.axis_index(MODEL) * n

    def numbered(query):
        """Queries by their numbers in the group; behind them = none."""
        size = lax.axis_size(MODEL) * n
        return jnp.where(query < n, start + query, size)

    of_group = partial(tables.of_group, axis_name=ALL)
    row, item = of_group(numbered(seen.row)), tables.places(table, of_group(seen.item))
    if seen.at is None:
        return Seen(row, item)
    more = seen.at, numbered(seen.owner), seen.length
    return Seen(row, item, *map(of_group, more))


def set_seen(queries: Queries, values, to: float):
    """[B, V] with `to` in the columns of the items in each query's whole history."""
    seen = queries.seen
    pairs = seen.row, seen.item
    if seen.at is None:
        return values.at[pairs].set(to, mode="drop")
    first = jnp.full(values.shape, np.iinfo(np.int32).max)
    first = first.at[pairs].min(seen.at, mode="drop")
    return jnp.where(first[seen.owner] < seen.length[:, None], to, values)


def make_evaluator(
    config,
    holdout: Holdout,
    score: Callable,
    mesh,
    mask: int = 0,
    *,
    selects: bool = False,
    **rules,
) -> Evaluator:
    """An Evaluator under the config's rules; `rules` go before them.

    Args:
      selects: it measures what the config selects by, where that has no cut-off.
    """
    by = config.eval.select_by
    asked = {
        "ks": config.eval.ks,
        "measures": metrics.chosen(config.eval),
        "uncut": [by] if selects and by in metrics.UNCUT else [],
        "max_len": config.seq.max_len,
        "filter_seen": config.eval.filter_seen,
        "batch": config.eval.batch,
        "mask": mask,
    }
    return Evaluator(holdout, score, mesh, **asked | rules)


def model_scores(model: System, mesh, *, by_graph: bool) -> Callable:
    """Scores of a model: the transformer's state, or the graph's user, on the items."""
    axis_name, common = parallel.batch_axes(mesh), dict(by_graph=by_graph)
    own = dict(axis_name=axis_name) if tables.is_split(axis_name) else {}

    def score(params, graph):
        source, items = model.query_tables(params, graph, axis_name=axis_name, **common)

        def of(queries):
            asked = params, source, queries.histories
            vectors = model.query_vectors(*asked, **common, **own)
            return tables.of_group(vectors, axis_name) @ items.T

        return of

    return score
