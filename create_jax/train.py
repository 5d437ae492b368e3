"""The one training loop, and the run around it: select, refit, test once."""

import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from create_jax import evaluate, feeds, optim, parallel, protocol, settings, steps
from create_jax.checkpoint import Checkpoints
from create_jax.errors import InputError
from create_jax.writers import JsonLines, make_workdir, read_json, write_json


class Run(NamedTuple):
    """What all stages of a run share."""

    config: object
    workdir: Path
    mesh: object
    lines: JsonLines


class Fitted(NamedTuple):
    """A trained model: params and graph on the devices, and how it came about."""

    model: object
    params: dict
    graph: object
    progress: dict


def train_and_evaluate(config, workdir: str) -> dict:
    """Trains, selects on validation, refits, tests once; returns the result.

    Running it again continues from the last checkpoint; a finished run returns its
    result at once.
    """
    settings.check(config)
    workdir = make_workdir(workdir)
    started = read_json(workdir / "config.json")
    if started is not None:
        _refuse_other_config(workdir, started["config"], config)
    result = read_json(workdir / "result.json")
    if result is not None:
        say(f"{workdir} holds a finished run")
        return result

    log = protocol.load(config)
    split = protocol.make_split(config, log)
    facts = protocol.describe(config, log, split)
    data = facts["data"]
    if started is None:
        about = {"config": config.to_dict(), "data": data["fingerprint"]}
        write_json(workdir / "config.json", about)
    elif started["data"] != data["fingerprint"]:
        raise InputError(
            f"{workdir} was trained on other data (fingerprint {started['data']}, now "
            f"{data['fingerprint']}); choose another --workdir"
        )
    say(
        f"{config.data.name}: {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions; {data['train_interactions']:,} to learn "
        f"from, {data['test_queries']:,} test queries"
    )
    run = Run(config, workdir, parallel.make_mesh(), JsonLines(workdir / "metrics.jsonl"))

    if config.method in settings.MODEL_FREE:
        fitted, selection = None, None
    else:
        fitted, selection = _select_and_refit(run, split)
    return _test(run, facts, split, fitted, selection)


def _select_and_refit(run: Run, split):
    """The model to test, and the progress of the run that chose its length (or None)."""
    config, phases = run.config, settings.make_phases(run.config)
    if split.valid is None:
        return fit(run, "fixed", phases, split.refit, None), None
    chosen = fit(run, "select", phases, split.train, split.valid)
    selection = chosen.progress
    if config.retrain.epochs == "none":
        return chosen, selection
    epochs = selection["best_epoch"]
    if config.retrain.epochs == "scaled":
        epochs *= len(split.train.users) / len(split.refit.users)
    return fit(run, "refit", _shorten(phases, round(epochs)), split.refit, None), selection


def _shorten(phases, epochs):
    """The phases up to that many epochs in all, warm-up included; one epoch at least."""
    short = []
    for phase in phases:
        length = min(phase.epochs, epochs - sum(p.epochs for p in short))
        if length > 0:
            short.append(phase._replace(epochs=length))
    return short or [phases[0]._replace(epochs=1)]


def fit(run: Run, stage: str, phases, train, holdout) -> Fitted:
    """Trains through all phases, validating on `holdout` where there is one.

    Epochs count through the phases. Early stopping counts from the last phase's start
    and returns the best parameters; without a holdout, the last parameters.
    """
    config, mesh = run.config, run.mesh
    model = settings.make_model(config, train.n_users, train.n_items)
    tx = optim.make(**config.optim.to_dict())
    pairs = feeds.make_pairs(config, train) if model.graph != "none" else None
    graph = feeds.make_graph(config, model, pairs, mesh.size)
    graph = parallel.place(mesh, graph, steps.graph_specs(graph))
    state = parallel.place(mesh, steps.init(model, tx, config.seed))
    validate = _validator(run, model, phases, holdout) if holdout is not None else None

    checkpoints = Checkpoints(run.workdir / "checkpoints" / stage)
    progress = {
        "epoch": 0,  # the epoch to continue with, and the next chunk in it
        "chunk": 0,
        "sums": {},  # of the losses so far in this epoch
        "best_epoch": 0,
        "best_score": -1.0,
        "best_metrics": {},
        "finished": False,
        "seconds": {"compile": 0.0, "train": 0.0, "eval": 0.0},
    }
    restored = checkpoints.restore_latest(state)
    if restored is not None:
        state, progress = restored
        say(f"{stage}: continuing from epoch {progress['epoch'] + 1}")
    run.lines.rewind(
        lambda line: line["stage"] != stage or line["epoch"] <= progress["epoch"]
    )

    clock = Clock(progress["seconds"])
    total, first_joint = sum(p.epochs for p in phases), sum(p.epochs for p in phases[:-1])
    bar = _bar(stage, total, progress["epoch"])
    current, pending, step, saved_at = None, [], int(state.step), time.monotonic()
    while not progress["finished"]:
        epoch = progress["epoch"]
        phase = _phase_at(phases, epoch)
        if phase != current:
            feed = feeds.Feed(config, phase, train, pairs, mesh.size)
            batch = _place(run, model, feed.batch(feed.plan(epoch), 0))
            with clock("compile"):
                dispatch = steps.compile_phase(
                    model, phase, tx, config.seed, mesh, batch, graph
                )
                dispatch = dispatch.lower(state, batch, graph).compile()
            if epoch == first_joint > 0 and config.warmup.reset_optimizer:
                fresh = parallel.place(mesh, optim.init(tx, state.params))
                state = state._replace(opt_state=fresh)
            current = phase

        with clock("train"):
            plan = feed.plan(epoch)
            for chunk in range(progress["chunk"], feed.chunks):
                # Made while the dispatch before it runs.
                batch = _place(run, model, feed.batch(plan, chunk))
                step = _settle(pending, progress["sums"], step, phase)
                state, losses = dispatch(state, batch, graph)
                pending.append(losses)
                progress["chunk"] = chunk + 1
                bar.update(epoch + chunk / feed.chunks - bar.n)
                due = time.monotonic() - saved_at >= config.checkpoint.seconds
                if due and chunk + 1 < feed.chunks:
                    step = _settle(pending, progress["sums"], step, phase)
                    checkpoints.save(step, state, progress, score=-1.0)
                    saved_at = time.monotonic()
            step = _settle(pending, progress["sums"], step, phase)

        line = {"stage": stage, "epoch": epoch + 1, "phase": phase.name, "step": step}
        line |= {k: v / feed.steps for k, v in progress["sums"].items()}
        progress |= {"epoch": epoch + 1, "chunk": 0, "sums": {}}
        last, score = epoch + 1 == total, -1.0
        if validate is not None and ((epoch + 1) % config.eval.every == 0 or last):
            with clock("eval"):
                metrics = validate(state.params, graph, phase)
            line |= {f"valid/{name}": value for name, value in metrics.items()}
            if phase == phases[-1]:
                score = metrics[config.eval.select_by]
                if score > progress["best_score"]:
                    progress |= {"best_epoch": epoch + 1, "best_score": score}
                    progress["best_metrics"] = metrics
        better = progress["best_epoch"] == epoch + 1
        waited = epoch + 1 - max(progress["best_epoch"], first_joint)
        stop = validate is not None and waited >= config.train.patience * config.eval.every
        progress["finished"] = last or stop
        bar.update(epoch + 1 - bar.n)
        bar.set_postfix_str(_brief(line, config.eval.select_by), refresh=False)
        run.lines.write(line)
        due = time.monotonic() - saved_at >= config.checkpoint.seconds
        if better or due or progress["finished"]:
            checkpoints.save(step, state, progress, score)
            saved_at = time.monotonic()
    bar.close()
    checkpoints.wait()
    if validate is not None and progress["best_epoch"]:
        state, _ = checkpoints.restore_best(state)
    checkpoints.close()
    return Fitted(model, state.params, graph, progress)


class Clock:
    """Adds the seconds of a `with clock(name):` block to a dict that is saved."""

    def __init__(self, seconds: dict):
        self.seconds = seconds

    def __call__(self, name: str):
        self.name = name
        return self

    def __enter__(self):
        self.start = time.monotonic()

    def __exit__(self, *_):
        self.seconds[self.name] += time.monotonic() - self.start


def _phase_at(phases, epoch):
    for phase in phases:
        if epoch < phase.epochs:
            return phase
        epoch -= phase.epochs
    raise ValueError("no phase has that epoch")


def _place(run, model, batch):
    return parallel.place(run.mesh, batch, steps.batch_specs(model, batch))


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
                f"{bad[1]} is not finite at step {step + bad[0]} of phase {phase.name}; "
                "lower optim.lr or the weight of that loss, or set optim.clip=1; the "
                "last checkpoint is intact"
            )
        for name, values in losses.items():
            sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
        step += len(losses["loss"])
    return step


def _validator(run, model, phases, holdout):
    """(params, graph, phase) -> metrics. A warm-up is scored with the graph's users."""
    config = run.config
    asker = _asker(run, holdout)
    by_name = {}

    def validate(params, graph, phase):
        by_graph = model.encoder is None or (
            phase.name == "warmup" and config.warmup.eval == "graph"
        )
        if by_graph not in by_name:
            score = evaluate.model_scores(model, by_graph=by_graph)
            needs_lists = config.eval.target == "all"
            by_name[by_graph] = evaluate.compile_ranker(
                score,
                holdout.candidates,
                run.mesh,
                top_k=max(config.eval.ks) if needs_lists else 0,
            )
        ranking = evaluate.ask(by_name[by_graph], asker, params, graph)
        return evaluate.summarise(ranking, holdout, config.eval.ks, model.n_items)

    return validate


def _asker(run, holdout):
    config = run.config
    return evaluate.Asker(
        holdout,
        run.mesh,
        max_len=config.seq.max_len,
        filter_seen=config.eval.filter_seen,
        batch=config.eval.batch,
    )


def scorer(config, model, train):
    """The scores by which `config.method` ranks."""
    if config.method in settings.MODEL_FREE:
        counts = np.bincount(train.items, minlength=train.n_items + 1)
        return evaluate.counting_scores(counts, config.method, config.seed)
    return evaluate.model_scores(model, by_graph=model.encoder is None)


def _test(run, facts, split, fitted, selection) -> dict:
    """Ranks the test queries of every target rule, once, and writes result.json."""
    config, start = run.config, time.monotonic()
    model, params, graph = fitted[:3] if fitted else (None, {}, ())
    score = scorer(config, model, split.refit)
    by_target = {}
    candidates = split.test[config.eval.target].candidates
    top_k = max(config.eval.ks)
    rank = evaluate.compile_ranker(score, candidates, run.mesh, top_k=top_k)
    for name, holdout in split.test.items():
        ranking = evaluate.ask(rank, _asker(run, holdout), params, graph)
        by_target[name] = evaluate.summarise(
            ranking, holdout, config.eval.ks, split.refit.n_items
        )
    seconds = _seconds(selection, fitted)
    seconds["eval"] += time.monotonic() - start
    result = {
        "dataset": facts["dataset"],
        "method": config.method,
        "seed": config.seed,
        "protocol": facts["protocol"],
        "data": facts["data"],
        "valid": selection["best_metrics"] if selection else {},
        "test": by_target[config.eval.target],
        "test_by_target": by_target,
        "epochs": fitted.progress["epoch"] if fitted else 0,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": _versions(),
        "git": _git_commit(),
    }
    write_json(run.workdir / "result.json", result)
    return result


def _seconds(selection, fitted):
    seconds = {"compile": 0.0, "train": 0.0, "eval": 0.0}
    stages = {id(p): p for p in (selection, fitted and fitted.progress) if p}
    for progress in stages.values():
        for name, value in progress["seconds"].items():
            seconds[name] += value
    return seconds


def _versions():
    names = ("create_jax", "jax", "flax", "optax", "jraph", "orbax-checkpoint", "numpy")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def _git_commit():
    """The commit of this source tree; None where it is not a checkout."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        here = Path(__file__).parent
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _refuse_other_config(workdir, before, config):
    """A run continues under its own config only; says what differs."""
    ignored = ("data.path", "checkpoint.seconds", "compare", "example")

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif prefix + key not in ignored:
                yield prefix + key, list(value) if isinstance(value, tuple) else value

    old, new = dict(flat(before)), dict(flat(config.to_dict()))
    differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if differ:
        shown = "; ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in differ[:5])
        raise InputError(
            f"{workdir} holds a run of another config ({shown}); use that config again or "
            "choose another --workdir"
        )


def _bar(stage, total, done):
    return tqdm(
        total=total,
        initial=done,
        desc=stage,
        unit="epoch",
        disable=jax.process_index() != 0,
        bar_format="{desc:>6} {percentage:3.0f}%|{bar:24}| epoch {n:.1f}/{total} "
        "[{elapsed}<{remaining}] {postfix}",
    )


def _brief(line, select_by):
    shown = [f"{line['phase']}", f"loss {line['loss']:.4f}"]
    if f"valid/{select_by}" in line:
        shown.append(f"valid {select_by} {line[f'valid/{select_by}']:.4f}")
    return "  ".join(shown)


def say(text: str) -> None:
    """One line for people, from process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def evaluate_again(config, workdir: str) -> dict:
    raise NotImplementedError


def show_example(config, workdir: str) -> None:
    raise NotImplementedError
