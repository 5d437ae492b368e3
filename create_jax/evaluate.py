"""Ranks the whole catalogue for every query of a Holdout, streaming on the devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from create_jax import metrics, parallel, steps
from create_jax.data import packing
from create_jax.data.splits import Holdout
from create_jax.models import create
from create_jax.parallel import DATA

NOT_RANKED = np.iinfo(np.int32).max


class Queries(NamedTuple):
    """The part of a Holdout that one dispatch ranks, stacked [S, ...].

    histories: packed histories; `users` holds query numbers until `ask` maps them.
    targets: [B] item of each query. query: [B] its number.
    seen_row, seen_item: [H] pairs (row of the shard's B, item of its history); row B =
      none.
    """

    histories: packing.Batch
    targets: np.ndarray
    query: np.ndarray
    seen_row: np.ndarray
    seen_item: np.ndarray


class Ranking(NamedTuple):
    """ranks: [Q] candidates before the target; NOT_RANKED if it is hidden or unknown.
    top: [Q, K] best items, 0 = nothing left; None where no list was asked for."""

    ranks: np.ndarray
    top: np.ndarray | None


class Asker:
    """A Holdout cut into equal dispatches, made once and asked many times.

    Args:
      max_len: slots of a history that a sequence encoder reads, the newest items.
      mask: id of a [MASK] to end each history with; 0 = none.
      pairs: give the whole histories as pairs, to hide them or to fold them in.
      batch: queries a step, over all devices.
    """

    def __init__(
        self, holdout: Holdout, mesh, *, max_len, pairs, batch, mask=0, chunk=32
    ):
        newest = holdout.end - max_len + (mask > 0)
        begin = np.maximum(holdout.begin, newest)
        numbers = np.arange(holdout.n_queries, dtype=np.int32)
        sequences = packing.Sequences(numbers, holdout.log, begin, holdout.end, mask)
        self.holdout, self.mesh, self.pairs = holdout, mesh, pairs
        self.sequences, lengths = sequences, sequences.lengths
        self.layout = packing.make_layout(
            lengths, batch=batch, row_length=max_len, shards=mesh.size, chunk=chunk
        )
        self.plan = packing.plan_epoch(lengths, self.layout, seed=0, epoch=0)
        self.layout = self.layout._replace(ends=int(self.plan.segment.max()))
        self.chunk = self.layout.chunk
        self.most_seen = self._most_seen()
        # Small enough to stay on the devices between epochs.
        self.resident = None

    def _most_seen(self):
        if not self.pairs:
            return 1
        sizes = self.holdout.end - self.holdout.begin
        return int(packing.lengths_at(self.plan.index, sizes).sum(-1).max())

    def chunks(self):
        """Queries of each dispatch, on the devices."""
        if self.resident is not None:
            return self.resident
        starts = range(0, self.layout.steps, self.chunk)
        made = (self._queries(start) for start in starts)
        if self.layout.steps <= 4 * self.chunk:
            self.resident = made = list(made)
        return made

    def _queries(self, start):
        plan = packing.steps_of(self.plan, start, start + self.chunk)
        batch = packing.fill(plan, self.sequences, self.layout)
        holdout = self.holdout
        query = np.where(batch.weights > 0, batch.users, -1)
        targets = holdout.targets[holdout.offsets[np.maximum(query, 0)]]
        batch = batch._replace(users=holdout.users[np.maximum(query, 0)])
        rows, items = self._seen(plan)
        queries = Queries(batch, targets.astype(np.int32), query, rows, items)
        return parallel.place(self.mesh, queries, P(None, DATA))

    def _seen(self, plan):
        """[S, D * H] pairs to hide, padded to the most of any shard."""
        steps_, shards, width = plan.index.shape
        rows = np.full((steps_ * shards, self.most_seen), width, np.int32)
        items = np.zeros_like(rows)
        if self.pairs:
            holdout, index = self.holdout, plan.index.reshape(-1, width)
            real = index >= 0
            number = index[real]
            size = (holdout.end - holdout.begin)[number]
            bins, row = np.nonzero(real)
            per_bin = np.bincount(bins, size, len(rows)).astype(np.int64)
            to = (np.repeat(bins, size), packing.count_within(per_bin))
            rows[to] = np.repeat(row, size)
            begin = np.repeat(holdout.begin[number], size)
            items[to] = holdout.log[begin + packing.count_within(size)]
        return rows.reshape(steps_, -1), items.reshape(steps_, -1)


def make_asker(config, holdout: Holdout, mesh, mask: int = 0) -> Asker:
    folds_in = config.method == "svd" and config.svd.history == "full"
    return Asker(
        holdout,
        mesh,
        max_len=config.seq.max_len,
        pairs=config.eval.filter_seen or folds_in,
        batch=config.eval.batch,
        mask=mask,
    )


def compile_ranker(
    score: Callable, candidates: np.ndarray, mesh, *, top_k: int, hide_seen: bool
) -> Callable:
    """(params, graph, Queries) -> (ranks [S, B], top [S, B, K]).

    Args:
      score: (params, graph) -> (queries of one step -> [B, V] scores); what all queries
        share, a propagation say, is made in the first call.
      candidates: [I + 1] bool, items that may be ranked.
      top_k: length of the lists; 0 = ranks only.
      hide_seen: do not rank the items of the history.
    """
    bias = np.where(candidates, 0.0, -np.inf).astype(np.float32)

    def step(score_queries, queries):
        # A [MASK] row after the items is no candidate.
        scores = score_queries(queries)[:, : len(bias)] + bias
        if hide_seen:
            pairs = queries.seen_row, queries.seen_item
            scores = scores.at[pairs].set(-jnp.inf, mode="drop")
        target = queries.targets[:, None]
        own = jnp.take_along_axis(scores, target, 1)
        ids = jnp.arange(scores.shape[1])
        before = (scores > own) | ((scores == own) & (ids < target))
        ranks = jnp.where(own[:, 0] > -jnp.inf, before.sum(-1), NOT_RANKED)
        if not top_k:
            return ranks, None
        best, top = lax.top_k(scores, min(top_k, scores.shape[1]))
        return ranks, jnp.where(best > -jnp.inf, top, 0)

    def run(params, graph, queries):
        # Rounded products would change ranks: bfloat16 a sixth of them.
        with jax.default_matmul_precision("highest"):
            score_queries = score(params, graph)
            return lax.map(lambda q: step(score_queries, q), queries)

    compiled = {}

    def rank(params, graph, queries):
        if not compiled:
            specs = (P(), steps.graph_specs(graph), P(None, DATA))
            compiled["run"] = parallel.compile_step(run, mesh, specs, P(None, DATA))
        return compiled["run"](params, graph, queries)

    return rank


def model_scores(model: create.Model, *, by_graph: bool) -> Callable:
    """Scores of a model: the transformer's state, or the graph's user, on the items."""

    def score(params, graph):
        common = dict(by_graph=by_graph)
        tables = model.system.query_tables(
            model, params, graph, axis_name=DATA, **common
        )
        source, items = tables

        def of(queries):
            arguments = model, params, source, queries.histories
            return model.system.query_vectors(*arguments, **common) @ items.T

        return of

    return score


def factor_scores(*, fold_in: bool) -> Callable:
    """Scores of PureSVD from params `users` [U, r] and `items` [V, r].

    fold_in: the user's row is the whole history of the query, not the training rows.
    """

    def score(params, graph):
        items = params["items"]

        def of(queries):
            if not fold_in:
                return params["users"][queries.histories.users] @ items.T
            rows = jnp.zeros((len(queries.query), len(items)))
            pairs = queries.seen_row, queries.seen_item
            return (rows.at[pairs].set(1.0, mode="drop") @ items) @ items.T

        return of

    return score


def counting_scores(counts: np.ndarray, method: str, seed: int) -> Callable:
    """MostPop, PopRnd and Random as scores, so that they are ranked like any model.

    counts: [V] training rows of each item. PopRnd draws items without replacement with
    probability proportional to them (Gumbel top-k), Random draws uniformly.
    """
    with np.errstate(divide="ignore"):
        logits = {
            "mostpop": counts.astype(np.float32),
            "poprnd": np.log(counts).astype(np.float32),
            "random": np.zeros(len(counts), np.float32),
        }[method]

    def noise(number):
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.gumbel(key, logits.shape)

    def of(queries):
        if method == "mostpop":
            return jnp.broadcast_to(logits, (len(queries.query), len(logits)))
        return logits + jax.vmap(noise)(queries.query)

    return lambda params, graph: of


def ask(rank: Callable, asker: Asker, params, graph) -> Ranking:
    """Ranks every query of the asker's Holdout."""
    n = asker.holdout.n_queries
    outputs = [(q.query, *rank(params, graph, q)) for q in asker.chunks()]
    ranks, top = np.full(n, NOT_RANKED, np.int32), None
    for query, some_ranks, some_top in jax.device_get(outputs):
        real = query >= 0
        ranks[query[real]] = some_ranks[real]
        if some_top is not None:
            if top is None:
                top = np.zeros((n, some_top.shape[-1]), np.int32)
            top[query[real]] = some_top[real]
    return Ranking(ranks, top)


def summarise(ranking: Ranking, holdout: Holdout, ks, n_items: int) -> dict[str, float]:
    """Means over queries of every metric at every k, as fractions."""
    single = len(holdout.targets) == holdout.n_queries
    result = {}
    for k in ks:
        if single:
            values = metrics.from_ranks(ranking.ranks, k)
        else:
            values = metrics.from_lists(
                ranking.top, holdout.targets, holdout.offsets, k
            )
        result |= {name: float(value.mean()) for name, value in values.items()}
        if ranking.top is not None:
            result[f"coverage@{k}"] = metrics.coverage(ranking.top, n_items, k)
    return result
