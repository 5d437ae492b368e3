"""The one training loop."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from create_jax import evaluate, feeds, optim, parallel, settings, steps
from create_jax.checkpoint import Checkpoints
from create_jax.errors import InputError
from create_jax.rundir import Run
from create_jax.writers import say


class Fitted(NamedTuple):
    """A method ready to rank, and how it came about.

    score: of `evaluate.Evaluator`, from the params and graph here. params: on the
    devices. graph: () -> the arrays that `score` reads, made when first asked for.
    reads: the Evaluator's `mask` or `whole`, where `score` needs them.
    """

    score: Callable
    params: dict
    graph: Callable
    progress: dict
    reads: dict = {}


def fit(
    run: Run, stage: str, phases, train, holdout, *, should_end=None, trains=True
) -> Fitted:
    """Trains through all phases, validating on `holdout` where there is one.

    Epochs count through the phases. Early stopping counts from the last phase's start
    and returns the best parameters; without a holdout, the last parameters.

    Args:
      should_end: (epoch of the last phase, score) -> bool, asked after its validations:
        a study's wish to end a run without promise (`progress["ended_early"]`).
      trains: False: the stage is finished; it is read and nothing is written.
    """
    with ExitStack() as stack:
        opened = stack.enter_context
        return _fit(run, stage, phases, train, holdout, should_end, trains, opened)


def _fit(run, stage, phases, train, holdout, should_end, trains, opened) -> Fitted:
    """Args: opened: enters what is closed at the end, also after an error."""
    config, mesh = run.config, run.mesh
    model = settings.make_model(config, train.n_users, train.n_items)
    tx = optim.make(**config.optim.to_dict())
    state = parallel.place(mesh, steps.init(model, tx, config.seed))

    @cache
    def make_graph():
        rows, pairs, graph = feeds.make_graph(config, model, train, mesh.size)
        return rows, pairs, parallel.place(mesh, graph, steps.graph_specs(graph))

    place = run.workdir / "checkpoints" / stage
    checkpoints = opened(closing(Checkpoints(place, read_only=not trains)))
    progress = {
        "epoch": 0,  # the epoch to continue with, and the next chunk in it
        "chunk": 0,
        "sums": {},  # of the losses so far in this epoch
        "best_epoch": 0,
        "best_step": 0,  # the checkpoint of that epoch
        "best_score": -1.0,
        "best_metrics": {},
        "finished": False,
        "ended_early": False,
        "seconds": {"compile": 0.0, "train": 0.0, "eval": 0.0},
    }
    if not trains:
        state, progress = checkpoints.restore(None, state)
        if not progress["finished"]:
            raise InputError(
                f"{place}: the newest checkpoint is of an unfinished stage; bring the "
                "last one back, or train again into another --workdir"
            )
    else:
        restored = checkpoints.restore_latest(state)
        if restored is not None:
            state, progress = restored
            if not progress["finished"]:
                say(f"{stage}: continuing in epoch {progress['epoch'] + 1}")
        run.lines.rewind(
            lambda line: line["stage"] != stage or line["epoch"] <= progress["epoch"]
        )

    seconds, every = progress["seconds"], config.checkpoint.seconds
    total = sum(p.epochs for p in phases)
    last_phase_from = total - phases[-1].epochs
    bar = opened(_bar(stage, total, progress))
    current, pending, step, saved_at = None, [], int(state.step), time.monotonic()
    validate = None
    if not progress["finished"]:
        rows, pairs, graph = make_graph()
        if holdout is not None:
            validate = _validator(run, model, phases, holdout)
    while not progress["finished"]:
        epoch = progress["epoch"]
        phase = _phase_at(phases, epoch)
        if phase != current:
            feed = feeds.Feed(config, model, phase, train, rows, pairs, mesh.size)
            batch = _place(run, feed.batch(feed.plan(epoch), 0))
            with _timed(seconds, "compile"):
                dispatch = steps.compile_phase(
                    model, phase, tx, config.seed, mesh, batch, graph
                )
                dispatch = dispatch.lower(state, batch, graph).compile()
            switching = epoch == last_phase_from > 0 and progress["chunk"] == 0
            if switching and config.warmup.reset_optimizer:
                fresh = parallel.place(mesh, optim.init(tx, state.params))
                state = state._replace(opt_state=fresh)
            current = phase

        with _timed(seconds, "train"):
            plan = feed.plan(epoch)
            for chunk in range(progress["chunk"], feed.chunks):
                # Made while the dispatch before it runs.
                batch = _place(run, feed.batch(plan, chunk))
                step = _settle(pending, progress["sums"], step, phase)
                state, losses = dispatch(state, batch, graph)
                pending.append(losses)
                progress["chunk"] = chunk + 1
                bar.update(epoch + chunk / feed.chunks - bar.n)
                if chunk + 1 < feed.chunks and _due(saved_at, every):
                    step = _settle(pending, progress["sums"], step, phase)
                    checkpoints.save(step, state, progress)
                    saved_at = time.monotonic()
            step = _settle(pending, progress["sums"], step, phase)

        line = {"stage": stage, "epoch": epoch + 1, "phase": phase.name, "step": step}
        line |= {k: v / feed.steps for k, v in progress["sums"].items()}
        progress |= {"epoch": epoch + 1, "chunk": 0, "sums": {}}
        last, early = epoch + 1 == total, False
        if validate is not None and ((epoch + 1) % config.eval.every == 0 or last):
            with _timed(seconds, "eval"):
                metrics = validate(state.params, graph, phase)
            line |= {f"valid/{name}": value for name, value in metrics.items()}
            if phase == phases[-1]:
                score = metrics[config.eval.select_by]
                if score > progress["best_score"]:
                    progress |= {"best_epoch": epoch + 1, "best_step": step}
                    progress |= {"best_score": score, "best_metrics": metrics}
                early = should_end is not None and should_end(
                    epoch + 1 - last_phase_from, score
                )
        better = progress["best_epoch"] == epoch + 1
        waited = epoch + 1 - max(progress["best_epoch"], last_phase_from)
        stop = (
            validate is not None and waited >= config.train.patience * config.eval.every
        )
        progress |= {"finished": last or stop or early, "ended_early": early}
        bar.update(epoch + 1 - bar.n)
        bar.set_postfix_str(_brief(line, config.eval.select_by), refresh=False)
        run.lines.write(line)
        due = _due(saved_at, every)
        if better or due or progress["finished"]:
            checkpoints.save(step, state, progress)
            saved_at = time.monotonic()
    checkpoints.wait()
    if holdout is not None and progress["best_epoch"]:
        state, _ = checkpoints.restore(progress["best_step"], state)
    by_graph = model.encoder is None  # its users are what ranks
    reads = model.system.queries_read_graph(model, by_graph=by_graph)
    return Fitted(
        evaluate.model_scores(model, by_graph=by_graph),
        state.params,
        (lambda: make_graph()[2]) if reads else tuple,
        progress,
        {"mask": model.mask},
    )


@contextmanager
def _timed(seconds: dict, name: str):
    """Adds the time of a block to a dict that is saved with the run."""
    start = time.monotonic()
    yield
    seconds[name] += time.monotonic() - start


def _due(saved_at: float, seconds: float) -> bool:
    """Whether to save; process 0's clock decides for all, as all must save together."""
    due = time.monotonic() - saved_at >= seconds
    if jax.process_count() > 1:
        due = bool(multihost_utils.broadcast_one_to_all(np.array(due)))
    return due


def _phase_at(phases, epoch):
    for phase in phases:
        if epoch < phase.epochs:
            return phase
        epoch -= phase.epochs
    raise ValueError("no phase has that epoch")


def _place(run, batch):
    return parallel.place(run.mesh, batch, steps.batch_specs(batch))


def _settle(pending: list, sums: dict, step: int, phase) -> int:
    """Waits for the dispatch under way, if any, and adds its losses in float64.

    Returns the steps taken. A loss or gradient that is not finite ends the run before
    it can reach a checkpoint.
    """
    while pending:
        losses = jax.device_get(pending.pop())
        bad = steps.first_bad_step(losses)
        if bad is not None:
            raise InputError(
                f"{bad[1]} is not finite at step {step + bad[0]} of phase "
                f"{phase.name}; in another --workdir, lower optim.lr or the weight of "
                "that loss, or set optim.clip=1; the last checkpoint is intact"
            )
        for name, values in losses.items():
            sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
        step += len(losses["loss"])
    return step


def _validator(run, model, phases, holdout):
    """(params, graph, phase) -> metrics. A warm-up is scored with the graph's users."""
    config, evaluators = run.config, {}

    def validate(params, graph, phase):
        by_graph = model.encoder is None or (
            phase.name == "warmup" and config.warmup.eval == "graph"
        )
        if by_graph not in evaluators:
            evaluators.clear()  # a warm-up ends once
            score = evaluate.model_scores(model, by_graph=by_graph)
            evaluators[by_graph] = evaluate.make_evaluator(
                config, holdout, score, run.mesh, model.mask, lists=False
            )
        return evaluators[by_graph].run(params, graph).metrics

    return validate


def _bar(stage, total, progress):
    return tqdm(
        total=total,
        initial=progress["epoch"],
        desc=stage,
        unit="epoch",
        disable=progress["finished"] or jax.process_index() != 0,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        bar_format="{desc:>6} {percentage:3.0f}%|{bar:24}| epoch {n:.1f}/{total} "
        "[{elapsed}<{remaining}] {postfix}",
    )


def _brief(line, select_by):
    shown = [f"{line['phase']}", f"loss {line['loss']:.4f}"]
    if f"valid/{select_by}" in line:
        shown.append(f"valid {select_by} {line[f'valid/{select_by}']:.4f}")
    return "  ".join(shown)
