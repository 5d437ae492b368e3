"""The one training loop."""

import sys
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from create_jax import build, cluster, evaluate, feeds, optim, parallel, speed, steps
from create_jax.checkpoint import Checkpoints
from create_jax.errors import AgreedError, InputError
from create_jax.rundir import Run
from create_jax.writers import say


@dataclass(frozen=True)
class Progress:
    """How far a stage has come; its fields stand by these names in checkpoints.

    epoch, chunk: to go on with. sums: of the losses so far in this epoch. recent: what
    selects, of the last validations that count. best_score: their greatest mean.
    best_step: the checkpoint of the best epoch, 0 = none yet. seconds: clocks, which
    run on in place.
    """

    epoch: int = 0
    chunk: int = 0
    sums: dict = field(default_factory=dict)
    recent: list = field(default_factory=list)
    best_epoch: int = 0
    best_step: int = 0
    best_score: float = -1.0
    best_metrics: dict = field(default_factory=dict)
    finished: bool = False
    ended_early: bool = False
    seconds: dict = field(
        default_factory=lambda: {"compile": 0.0, "train": 0.0, "eval": 0.0}
    )

    @classmethod
    def restored(cls, saved: dict) -> "Progress":
        """That of a checkpoint, which may be of another version."""
        names = {one.name for one in fields(cls)}
        return cls(**{name: saved[name] for name in saved.keys() & names})


class Fitted(NamedTuple):
    """A method ready to rank, and how it came about.

    score: of `evaluate.Evaluator`, from the params and graph here. params: on the
    devices. graph: () -> the arrays that `score` reads, made when first asked for.
    reads: the Evaluator's `mask` or `whole`, where `score` needs them.
    """

    score: Callable
    params: dict
    graph: Callable
    progress: Progress
    reads: dict = {}


def fit(
    run: Run,
    stage: str,
    phases,
    train,
    holdout,
    *,
    validate=None,
    should_end=None,
    trains=True,
) -> Fitted:
    """Trains through all phases, validating on `holdout` where there is one.

    Epochs count through the phases. Early stopping counts from the last phase's start
    and returns the best parameters; without a holdout, the last parameters.

    Args:
      validate: (params, graph, phase) -> metrics, what the config selects by among
        them, or none in a warm-up; instead of the config's own metrics of `holdout`.
      should_end: (epoch of the last phase, score) -> bool, asked after its validations:
        a study's wish to end a run without promise (`progress.ended_early`).
      trains: False: the stage is finished; it is read and nothing is written.

    Raises:
      InputError: no user has two rows, and a phase learns from sequences.
      Leaving: a process was asked to; all is saved.
    """
    # The model. Its graph is made when first asked for.
    config, clock = run.config, speed.Clock()
    if any(phase.local for phase in phases):
        feeds.check_sequences(train)
    model = build.make_model(config, train.n_users, train.n_items)
    tx = optim.make(**config.optim.to_dict())
    state = steps.start(model, tx, config.seed, run.mesh)
    make_graph = cache(partial(_make_graph, run, model, train))
    prepare = partial(prepare_phase, run, model, tx, train)
    validate = validate or _validator(run, model, holdout)

    # Where an earlier process stopped, or the beginning.
    rules, ready = make_stopping(config, phases, holdout), None
    place, every = run.workdir / "checkpoints" / stage, config.checkpoint.seconds
    kept = Checkpoints(
        place, every=every, read_only=not trains, rows=steps.real_rows(model)
    )
    with closing(kept) as checkpoints:
        state, progress = _continue(run, stage, checkpoints, state, trains)
        with _bar(stage, rules.total, progress) as bar:
            while not progress.finished:
                # A phase begins: its batches, its program, perhaps a fresh optimizer.
                epoch, graph = progress.epoch, make_graph()
                phase = _phase_at(phases, epoch)
                if ready is None or ready.phase != phase:
                    ready = prepare(phase, graph, state, progress)
                    begins = epoch == rules.last_from > 0 and progress.chunk == 0
                    if begins and config.warmup.reset_optimizer:
                        state = steps.restart(tx, state, run.mesh)

                # The epoch, or what is left of it.
                chunks = ready.feed.chunks - progress.chunk
                with (
                    _timed(progress.seconds, "train"),
                    _traced(run, ready, epoch + 1) as traced,
                    clock.steps(),
                ):
                    state, progress, wished = run_epoch(
                        traced, state, progress, checkpoints, bar, clock
                    )
                step, metrics, early = int(state.step), {}, False

                # Validation; who leaves in it begins it again.
                if rules.validates(epoch + 1):
                    with (
                        _timed(progress.seconds, "eval"),
                        _saved_on_leaving(checkpoints, step, state, progress),
                    ):
                        metrics = validate(state.params, graph.arrays, phase)
                    # Means of other processors may differ in the last bit, and with
                    # them what is best and when training ends: process 0 decides.
                    metrics = cluster.gather(metrics)[0]
                    if should_end is not None and epoch >= rules.last_from:
                        score = metrics[rules.select_by]
                        early = should_end(epoch + 1 - rules.last_from, score)

                # The record; the best so far, and whether this was the last epoch.
                line = _line(stage, ready, step, progress, metrics)
                line |= clock.line(ready, chunks, ready.work)
                run.lines.write(line)
                bar.update(epoch + 1 - bar.n)
                bar.set_postfix_str(_brief(line, rules.select_by), refresh=False)
                progress = after_epoch(progress, rules, step, metrics, early)
                better = progress.best_epoch == epoch + 1
                if wished or better or progress.finished:
                    checkpoints.save(step, state, asdict(progress))
                if wished == cluster.LEAVE and not progress.finished:
                    raise cluster.Leaving

        # The parameters of the best epoch, where there is one.
        checkpoints.wait()
        if holdout is not None and progress.best_epoch:
            state, _ = checkpoints.restore(progress.best_step, state)
    if run.profile > progress.epoch:
        say(f"no trace: {stage} ended before --profile={run.profile}")
    return _fitted(run, model, state.params, make_graph, progress)


def _fitted(run: Run, model, params, make_graph, progress: Progress) -> Fitted:
    by_graph = model.encoder is None  # its users are what ranks
    score = evaluate.model_scores(model, run.mesh, by_graph=by_graph)
    reads = model.queries_read_graph(by_graph=by_graph)

    def graph():
        return make_graph().arrays if reads else ()

    return Fitted(score, params, graph, progress, {"mask": model.mask})


# --- before the epochs ----------------------------------------------------------------


class Graph(NamedTuple):
    """The user-item graph of a stage: its rows, their pairs, and the arrays that steps
    read, on the devices; None, None and () without one."""

    rows: object
    pairs: object
    arrays: object


def _make_graph(run: Run, model, train) -> Graph:
    shards, parts = run.mesh.shape[parallel.DATA], parallel.parts_of_tables(run.mesh)
    made = feeds.make_graph(run.config, model, train, shards, parts)
    rows, pairs, graph = made
    specs = steps.graph_specs(graph, parallel.batch_axes(run.mesh))
    wanted = parallel.bytes_a_device(run.mesh, graph, specs)
    room = parallel.memory(run.mesh)
    if room is not None and wanted > room:
        raise InputError(
            f"the graph of {len(pairs.users):,} pairs takes {wanted / 1e9:.1f} GB of "
            f"each device, which has {room / 1e9:.1f}; bring more devices, keep fewer "
            "rows of each user (graph.last_n), or choose a method without a graph"
        )
    return Graph(rows, pairs, parallel.place(run.mesh, graph, specs))


def _continue(run: Run, stage: str, checkpoints, state, trains: bool):
    """(state, progress) of the newest checkpoint, or the state given and the beginning;
    lines of epochs after it are dropped.

    Raises:
      InputError: the stage is not to be trained and not finished, or past the epoch to
        trace.
      Leaving: a process was asked to before there is anything to save.
    """
    if not trains:
        state, saved = checkpoints.restore(None, state)
        if not saved["finished"]:
            raise InputError(
                f"{checkpoints.directory}: the newest checkpoint is of an unfinished "
                "stage; a final fit goes on with --mode=train --config.final.fit=all; "
                "else bring the last one back, or train again into another --workdir"
            )
        return state, Progress.restored(saved)
    progress, restored = Progress(), checkpoints.restore_latest(state)
    if restored is not None:
        state, progress = restored[0], Progress.restored(restored[1])
        if not progress.finished:
            say(f"{stage}: continuing in epoch {progress.epoch + 1}")
    run.lines.rewind(
        lambda line: line["stage"] != stage or line["epoch"] <= progress.epoch
    )
    if run.profile and progress.epoch >= run.profile:  # the same command goes on
        say(f"no trace: {stage} is past --profile={run.profile}")
    if not progress.finished:
        cluster.leave_if_asked()
    return state, progress


class Ready(NamedTuple):
    """A phase to run. dispatch: (state, batch, graph, wishes) -> (state, losses, the
    greatest wish), compiled. wishes: makes what this process wishes. work: of an
    epoch."""

    phase: steps.Phase
    feed: feeds.Feed
    dispatch: Callable
    mesh: object
    graph: Graph
    wishes: Callable
    work: speed.Work

    def batch(self, plan, chunk: int) -> steps.StepBatch:
        """A dispatch's batch, on the devices."""
        return _place(self.mesh, self.feed.batch(plan, chunk))


def _place(mesh, batch: steps.StepBatch) -> steps.StepBatch:
    """A batch of `Feed`: its sequences and views are of this process's shards alone."""
    axes = parallel.batch_axes(mesh)
    specs, split = steps.batch_specs(batch, axes), P(None, axes)
    return steps.StepBatch(
        parallel.place_own(mesh, batch.sequences, split),
        parallel.place(mesh, batch.edges, specs.edges),
        parallel.place_own(mesh, batch.views, split),
    )


def prepare_phase(run, model, tx, train, phase, graph, state, progress) -> Ready:
    """Plans the batches of a phase and compiles its program."""
    config, mesh = run.config, run.mesh
    rows, pairs, own = graph.rows, graph.pairs, parallel.own_shards(mesh)
    feed = feeds.Feed(config, model, phase, train, rows, pairs, mesh.size, own)
    wishes = parallel.wishes(mesh)
    batch = _place(mesh, feed.batch(feed.plan(progress.epoch), 0))
    with _timed(progress.seconds, "compile"):
        dispatch = steps.compile_phase(
            model, phase, tx, config.seed, mesh, batch, graph.arrays
        )
        wish = wishes(cluster.NOTHING)
        dispatch = dispatch.lower(state, batch, graph.arrays, wish).compile()
    work = speed.count(feed, state.params)
    return Ready(phase, feed, dispatch, mesh, graph, wishes, work)


def _phase_at(phases, epoch):
    for phase in phases:
        if epoch < phase.epochs:
            return phase
        epoch -= phase.epochs
    raise ValueError("no phase has that epoch")


# --- an epoch -------------------------------------------------------------------------


@contextmanager
def _traced(run: Run, ready: Ready, epoch: int):
    """`ready`, whose first dispatches are traced if this is the epoch of --profile."""
    place = run.workdir / "profile" if run.profile == epoch else None
    with speed.trace(ready.dispatch, place) as dispatch:
        yield ready._replace(dispatch=dispatch)


@contextmanager
def _saved_on_leaving(checkpoints, step: int, state, progress: Progress):
    """Saves what is trained before the block, if it is left on somebody's wish."""
    try:
        yield
    except cluster.Leaving:
        checkpoints.save(step, state, asdict(progress))
        raise


def run_epoch(ready: Ready, state, progress: Progress, checkpoints, bar, clock):
    """(state, progress, what was wished with the last dispatch) after all dispatches of
    an epoch, or those that are left.

    A batch is made while the dispatch before it runs. Whether to save or to leave is
    asked with a dispatch and done after it, by all processes alike.

    Raises:
      Leaving: a process was asked to; all is saved.
    """
    feed, under_way = ready.feed, None
    plan = feed.plan(progress.epoch)
    before = int(state.step) - progress.chunk * feed.chunk_steps
    for chunk in range(progress.chunk, feed.chunks):
        batch = ready.batch(plan, chunk)
        progress, agreed = _settle(progress, under_way, before, ready)
        if agreed:
            with clock.apart():
                checkpoints.save(int(state.step), state, asdict(progress))
        if agreed == cluster.LEAVE:
            raise cluster.Leaving
        wish = cluster.SAVE if checkpoints.due() else cluster.NOTHING
        wish = cluster.LEAVE if cluster.asked_to_leave() else wish
        state, *under_way = ready.dispatch(
            state, batch, ready.graph.arrays, ready.wishes(wish)
        )
        bar.update(progress.epoch + chunk / feed.chunks - bar.n)
    return state, *_settle(progress, under_way, before, ready)


def _settle(progress: Progress, under_way, before: int, ready: Ready):
    """Waits for the dispatch under way, if any, and adds its losses in float64; the
    progress, and what was wished with it.

    A loss or gradient that is not finite ends the run before it can reach a checkpoint.

    Args:
      before: steps taken before this epoch, for that message.
    """
    if under_way is None:
        return progress, cluster.NOTHING
    (losses, agreed), sums = jax.device_get(under_way), dict(progress.sums)
    bad = steps.first_bad_step(losses)
    if bad is not None:
        step = before + progress.chunk * ready.feed.chunk_steps + bad[0]
        raise AgreedError(
            f"{bad[1]} is not finite at step {step} of phase {ready.phase.name}; in "
            "another --workdir, lower optim.lr or the weight of that loss, or set "
            "optim.clip=1; the last checkpoint is intact"
        )
    for name, values in losses.items():
        sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
    return replace(progress, chunk=progress.chunk + 1, sums=sums), int(agreed)


# --- after an epoch -------------------------------------------------------------------


class Stopping(NamedTuple):
    """When a stage validates and when it ends; epochs count through its phases.

    total: epochs of all phases. last_from: epochs before the last phase. every: epochs
    from one validation to the next; 0 = there is no holdout. patience: validations of
    the last phase without a better score that end the stage. mean: validations of the
    last phase, the newest ones, whose mean is the score.
    """

    total: int
    last_from: int
    every: int
    patience: int
    select_by: str
    mean: int = 1

    def validates(self, epoch: int) -> bool:
        """Whether the epoch with this number, from 1, is followed by a validation."""
        return self.every > 0 and (epoch % self.every == 0 or epoch == self.total)


def make_stopping(config, phases, holdout) -> Stopping:
    total = sum(phase.epochs for phase in phases)
    every = config.eval.every if holdout is not None else 0
    before, by = total - phases[-1].epochs, config.eval
    chosen_by = config.train.patience, by.select_by, by.select_mean
    return Stopping(total, before, every, *chosen_by)


def after_epoch(
    progress: Progress, rules: Stopping, step: int, metrics: dict, ended_early: bool
) -> Progress:
    """The progress after one more epoch: the best so far, and whether it is over.

    Args:
      step: taken in all. metrics: of the validation; empty where there was none.
    """
    epoch = progress.epoch + 1
    progress = replace(progress, epoch=epoch, chunk=0, sums={}, ended_early=ended_early)
    if metrics and epoch > rules.last_from:
        recent = [*progress.recent, metrics[rules.select_by]][-rules.mean :]
        progress = replace(progress, recent=recent)
        score = sum(recent) / len(recent)
        # A first one is the best whatever its score: a log-likelihood is negative.
        if progress.best_epoch == 0 or score > progress.best_score:
            best = {"best_score": score, "best_metrics": metrics}
            progress = replace(progress, best_epoch=epoch, best_step=step, **best)
    waited = epoch - max(progress.best_epoch, rules.last_from)
    tired = rules.every > 0 and waited >= rules.patience * rules.every
    return replace(progress, finished=epoch == rules.total or tired or ended_early)


def _validator(run: Run, model, holdout) -> Callable:
    """(params, graph, phase) -> metrics. A warm-up is scored with the graph's users."""
    config, evaluators = run.config, {}

    def validate(params, graph, phase):
        by_graph = model.encoder is None or (
            phase.name == "warmup" and config.warmup.eval == "graph"
        )
        if by_graph not in evaluators:
            evaluators.clear()  # a warm-up ends once
            score = evaluate.model_scores(model, run.mesh, by_graph=by_graph)
            evaluators[by_graph] = evaluate.make_evaluator(
                *(config, holdout, score, run.mesh, model.mask),
                selects=True,
                lists=False,
            )
        return evaluators[by_graph].run(params, graph).metrics

    return validate


@contextmanager
def _timed(seconds: dict, name: str):
    """Adds the time of a block to a dict that is saved with the run."""
    start = time.monotonic()
    yield
    seconds[name] += time.monotonic() - start


def _line(stage: str, ready: Ready, step: int, progress: Progress, metrics: dict):
    """What metrics.jsonl says of an epoch that has ended: means of losses, metrics."""
    line = {"stage": stage, "epoch": progress.epoch + 1}
    line |= {"phase": ready.phase.name, "step": step}
    line |= {name: total / ready.feed.steps for name, total in progress.sums.items()}
    return line | {f"valid/{name}": value for name, value in metrics.items()}


def _bar(stage, total, progress):
    return tqdm(
        total=total,
        initial=progress.epoch,
        desc=stage,
        unit="epoch",
        disable=progress.finished or jax.process_index() != 0,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        bar_format="{desc:>6} {percentage:3.0f}%|{bar:24}| epoch {n:.1f}/{total} "
        "[{elapsed}<{remaining}] {postfix}",
    )


def _brief(line, select_by):
    """What the progress bar says of an epoch: the first NDCG, and what selects."""
    valid = {key[6:]: x for key, x in line.items() if key.startswith("valid/")}
    familiar = [name for name in valid if name.startswith("ndcg@")][:1]
    names = [name for name in dict.fromkeys([*familiar, select_by]) if name in valid]
    values = [f"{name} {valid[name]:.4f}" for name in names]
    shown = ["valid " + "  ".join(values)] if values else []
    return "  ".join([line["phase"], f"loss {line['loss']:.4f}", *shown])
