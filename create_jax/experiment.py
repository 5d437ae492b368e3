"""A run: select on validation, refit on everything up to the cut, test once; then, for
use, perhaps fit all rows."""

import time
from functools import partial

import jax

from create_jax import baselines, build, cluster, curves, evaluate, rundir, settings
from create_jax.errors import InputError
from create_jax.rundir import FREE_TO_CHANGE, NOTABLE, Opened
from create_jax.train import Fitted, Progress, fit
from create_jax.writers import read_json, say

# What selected, for good: of a finished run nothing is selected again.
SELECTION = ("eval.select_by", "eval.select_target", "eval.select_mean")


def train_and_evaluate(config, workdir: str, profile: int = 0) -> dict:
    """Trains, selects, refits, tests once; returns the result and writes result.json.

    Running it again continues from the last checkpoint; a finished run returns its
    result, if it is one of these data, after the final fit if that is asked for.

    Args:
      profile: epoch of the first stage to trace, from 1; 0 = none.
    """
    build.check(config)
    # What leaves no checkpoint is fitted on all rows by the export alone.
    fits_all = config.final.fit == "all" and config.method not in baselines.FITS
    directory = rundir.locate(workdir)
    rundir.check(directory, config, FREE_TO_CHANGE)
    opened = rundir.open_run(config, directory)
    result = cluster.first(lambda: rundir.read_result(directory))
    if result is not None:
        say(
            f"{directory} holds a finished run: its result as it was; --mode=evaluate "
            "ranks anew, another --workdir trains anew"
        )
        if not fits_all:
            return result
    with rundir.hold(directory):
        rundir.mark(directory, config, opened.facts["data"], FREE_TO_CHANGE)
        cluster.leave_if_asked()
        traced = opened._replace(run=opened.run._replace(profile=profile))
        fitted, selection = _select_and_refit(traced, trains=result is None)
        if result is None:
            result, ranks = test(opened, fitted, selection)
            if cluster.is_first():
                picture, rules = directory / "curves.png", config.eval
                names = [rules.select_by, f"ndcg@{min(rules.ks)}"]
                with curves.optional(picture):
                    curves.draw(opened.run.lines.path, picture, names)
            rundir.keep(directory, result, ranks)
        if fits_all:
            fit_all_rows(opened, selection)
    return result


def evaluate_again(config, workdir: str, save: str = "") -> dict:
    """The result of a finished run, ranked anew under the `eval` settings of now. What
    selected stays: nothing is selected again.

    Args:
      save: a directory to keep it in, like a run of its own for `create_jax.report`.
    """
    build.check(config, selects=False)
    if not save:
        return test(*reopen(config, workdir))[0]
    place = rundir.locate(save, "--save")
    rundir.check(place, config, (*FREE_TO_CHANGE, *SELECTION))
    opened, fitted, selection = reopen(config, workdir)
    data = opened.facts["data"]
    cluster.first(lambda: rundir.refuse_other_data(place, data))
    result, ranks = test(opened, fitted, selection)
    with rundir.hold(place):
        rundir.mark(place, opened.run.config, data, FREE_TO_CHANGE)
        rundir.keep(place, result, ranks)
    return result


def reopen(config, workdir: str) -> tuple[Opened, Fitted, Progress | None]:
    """A finished run as it ended: its data under the `eval` settings of now, its model,
    and the progress of the stage that chose its length. An InputError where it is not
    finished, or left no checkpoints: it would be trained again."""
    directory = rundir.locate(workdir)

    def check():
        result = rundir.read_result(directory)
        if result is None:
            raise InputError(
                f"{directory}: no finished run here (no result.json); train it first "
                "with --mode=train, or name its directory with --workdir"
            )
        if result["epochs"] and not (directory / "checkpoints").exists():
            raise InputError(
                f"{directory}: the parameters of this run are gone (no checkpoints); "
                "train it again into another --workdir, or bring them back"
            )
        rundir.refuse_other_config(directory, config, (*FREE_TO_CHANGE, "eval."))
        started = settings.of_run(read_json(directory / "config.json")["config"])
        kept = {key: started[key] for key in SELECTION if key in started}
        own = started["eval.target"]
        if not kept.get("eval.select_target") and config.eval.target != own:
            kept["eval.select_target"] = own  # "" is that of `target`, now another
        return result["valid"], kept

    valid, kept = cluster.first(check)
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(kept)
    opened = rundir.open_run(config, directory)
    return opened, *_select_and_refit(opened, trains=False, valid=valid)


def _select_and_refit(
    opened: Opened, *, trains: bool, valid: dict | None = None
) -> tuple[Fitted, Progress | None]:
    """The model to test, and the progress of the stage that chose its length.

    Args:
      valid: of the result, where there is one: what leaves no checkpoint is fitted
        again, and must not choose another rank under other `eval` settings.
    """
    run, split = opened.run, opened.split
    if run.config.method in baselines.FITS:
        chosen = Progress(best_metrics=valid) if valid and "rank" in valid else None
        return baselines.fit(run, split, chosen)
    phases, retrain = build.make_phases(run.config), run.config.retrain.epochs
    stage = partial(fit, run, trains=trains)
    if split.valid is None:
        return stage("fixed", phases, split.refit, None), None
    chosen = stage("select", phases, split.train, split.valid)
    if retrain == "none":
        return chosen, chosen.progress
    share = 1.0
    if retrain == "scaled":
        share = split.train.n_rows / split.refit.n_rows
    short = shorten(phases, chosen.progress.best_epoch, share)
    run = run._replace(profile=0)
    return fit(run, "refit", short, split.refit, None, trains=trains), chosen.progress


def fit_all_rows(
    opened: Opened, selection: Progress | None, *, trains: bool = True
) -> Fitted:
    """The final fit, stage `final`: the method on every row of the log, test rows
    included, for the epochs that validation chose. Nothing can measure it.

    Args:
      selection: the progress of the stage that chose the length, if one did.
    """
    run, split, log = opened.run, opened.split, opened.log
    if run.config.method in baselines.FITS:
        return baselines.fit(run, split._replace(refit=log), selection)[0]
    phases, share = build.make_phases(run.config), 1.0
    if selection is not None:
        if run.config.retrain.epochs == "scaled":
            share = split.train.n_rows / log.n_rows
        phases = shorten(phases, selection.best_epoch, share)
    return fit(run, "final", phases, log, None, trains=trains)


def shorten(phases, epochs: int, share: float = 1.0) -> list:
    """The phases up to `epochs` in all, warm-up included, and of each that share of its
    epochs, at least one."""
    short = []
    for phase in phases:
        length = min(phase.epochs, epochs)
        epochs -= length
        if length:
            short.append(phase._replace(epochs=max(1, round(share * length))))
    return short


def rank(opened: Opened, fitted: Fitted, holdout, **rules) -> evaluate.Ranking:
    """Ranks a holdout by a fitted method under the config's rules.

    Args:
      rules: of `evaluate.Evaluator`, in the place of the config's.
    """
    evaluator = evaluate.make_evaluator(
        opened.run.config,
        holdout,
        fitted.score,
        opened.run.mesh,
        **fitted.reads,
        **rules,
    )
    return evaluator.run(fitted.params, fitted.graph())


def test(opened: Opened, fitted: Fitted, selection: Progress | None) -> tuple:
    """Ranks the test queries of every target rule: the whole content of result.json,
    and of ranks.npz, `<target>` and `<target>_users` [Q] for rules with one target."""
    config, split, facts = opened.run.config, opened.split, opened.facts
    start = time.monotonic()
    by_target, ranks, ties = {}, {}, 0.0
    for name, holdout in split.test.items():
        ranking = rank(opened, fitted, holdout)
        by_target[name] = ranking.metrics
        if name == config.eval.target:
            ties = round(float(ranking.tied.mean()), 6)
        if len(holdout.targets) == holdout.n_queries:
            ranks |= {name: ranking.ranks, f"{name}_users": holdout.users}
    if ties > NOTABLE:
        say(
            f"warning: {ties:.1%} of the test targets have the same score as another "
            f"item by {config.method}; such items come in an order drawn from their "
            "ids, so that part of these numbers is chance"
        )
    seconds = {"compile": 0.0, "train": 0.0, "eval": time.monotonic() - start}
    stages = [selection, fitted.progress] if selection else [fitted.progress]
    for progress in {id(stage): stage for stage in stages}.values():
        for name, value in progress.seconds.items():
            seconds[name] += value
    result = {
        "dataset": facts["dataset"],
        "method": config.method,
        "seed": config.seed,
        "protocol": facts["protocol"],
        "data": facts["data"],
        "valid": selection.best_metrics if selection else {},
        "test": by_target[config.eval.target],
        "test_by_target": by_target,
        "tied_targets_share": ties,
        "epochs": fitted.progress.best_epoch or fitted.progress.epoch,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "precision": config.model.precision,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": facts["versions"],
        "git": facts["git"],
    }
    return result, ranks
