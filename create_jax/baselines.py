"""Methods without gradient training: PureSVD, MostPop, PopRnd and Random."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from create_jax import evaluate, parallel
from create_jax.data.graph import make_pairs
from create_jax.data.splits import Split
from create_jax.errors import InputError
from create_jax.models import svd
from create_jax.rundir import Run
from create_jax.train import Fitted, Progress
from create_jax.writers import say


def fit(
    run: Run, split: Split, chosen: Progress | None = None
) -> tuple[Fitted, Progress | None]:
    """The fitted method of a run, and what validation selected; None = nothing.

    Args:
      chosen: what it selected before; it is not asked again.
    """
    return FITS[run.config.method](run, split, chosen)


def fit_svd(
    run: Run, split: Split, chosen: Progress | None
) -> tuple[Fitted, Progress | None]:
    """PureSVD on all rows up to the cut, with the rank that is best on validation."""
    config, start = run.config, time.monotonic()
    sides = split.train.n_users, split.train.n_items
    ranks = [rank for rank in config.svd.ranks if rank < min(sides)]
    if not ranks:
        raise InputError(
            f"config.svd.ranks is {tuple(config.svd.ranks)}; expected one below the "
            "{} users and {} items of the log".format(*sides)
        )

    def factors(train, rank):
        pairs = make_pairs(train)
        shape = train.n_users, train.n_items + 1
        items = svd.item_factors(*pairs[:2], *shape, rank, config.svd.power)
        return {"items": items, "users": svd.user_vectors(*pairs[:2], shape[0], items)}

    fold_in = config.svd.history == "full"
    score, reads = factor_scores(fold_in=fold_in), {"whole": fold_in}
    rank = max(ranks)
    if chosen is not None:
        rank = chosen.best_metrics["rank"]
    elif split.valid is not None:
        evaluator = evaluate.make_evaluator(
            config, split.valid, score, run.mesh, selects=True, **reads
        )
        scores = _validate(evaluator, factors(split.train, rank), ranks)
        by = config.eval.select_by
        rank = max(ranks, key=lambda rank: scores[rank][by])
        chosen = Progress(best_metrics=scores[rank] | {"rank": rank})
        say(f"svd: rank {rank} of {ranks} by validation {by}")
    params = parallel.place(run.mesh, factors(split.refit, rank))
    progress = Progress(seconds={"train": time.monotonic() - start})
    return Fitted(score, params, tuple, progress, reads), chosen


def _validate(evaluator, whole: dict, ranks) -> dict[int, dict]:
    """Validation metrics of each rank. The factors beyond a rank are set to zero, so
    that one program serves all."""
    found = {}
    for rank in ranks:
        within = np.arange(max(ranks)) < rank
        part = {name: values * within for name, values in whole.items()}
        part = parallel.place(evaluator.mesh, part)
        found[rank] = evaluator.run(part, ()).metrics
    return found


def fit_counting(run: Run, split: Split, chosen: None) -> tuple[Fitted, None]:
    """MostPop, PopRnd or Random on all rows up to the cut."""
    train = split.refit
    counts = np.bincount(train.items, minlength=train.n_items + 1)
    score = counting_scores(counts, run.config.method, run.config.seed)
    return Fitted(score, {}, tuple, Progress()), None


FITS = {
    "svd": fit_svd,
    "mostpop": fit_counting,
    "poprnd": fit_counting,
    "random": fit_counting,
}


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
            return (evaluate.set_seen(queries, rows, 1.0) @ items) @ items.T

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
