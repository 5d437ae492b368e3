"""A run: select on validation, refit on everything up to the cut, test once."""

import platform
import subprocess
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from create_jax import curves, evaluate, parallel, protocol, settings
from create_jax.data.graph import make_pairs
from create_jax.data.splits import Split
from create_jax.errors import InputError
from create_jax.models import svd
from create_jax.train import Fitted, Run, fit, say
from create_jax.unread import unread
from create_jax.writers import (
    JsonLines,
    check_writable,
    hold,
    read_json,
    whole,
    write_json,
)

# Settings that may differ when a run, or a study, goes on.
FREE_TO_CHANGE = (*settings.CHANGE_NO_NUMBER, "tune.")
FREE_IN_A_STUDY = (*settings.CHANGE_NO_NUMBER, "tune.trials")
# What a directory holds once something was trained or chosen in it.
WORK = ("result.json", "metrics.jsonl", "study.log", "checkpoints/*/[0-9]*")
# The share of queries from which on a run says what is wrong with them.
NOTABLE = 0.01


class Opened(NamedTuple):
    """A run with its data. facts: dataset, protocol and data parts of a result, and the
    versions and commit of the program."""

    run: Run
    split: Split
    facts: dict


def train_and_evaluate(config, workdir: str) -> dict:
    """Trains, selects, refits, tests once; returns the result and writes result.json.

    Running it again continues from the last checkpoint; a finished run returns its
    result, if it is one of these data.
    """
    settings.check(config)
    directory = Path(workdir).absolute()
    check_writable(directory)
    refuse_other_config(directory, config, FREE_TO_CHANGE)
    opened = open_run(config, directory)
    result = read_json(directory / "result.json")
    if result is not None:
        say(f"{directory} holds a finished run")
        return result
    with hold(directory):
        mark(directory, config, opened.facts["data"], FREE_TO_CHANGE)
        fitted, selection = _select_and_refit(opened)
        result, ranks = test(opened, fitted, selection)
        if jax.process_index() == 0:
            picture = directory / "curves.png"
            with curves.optional(picture):
                curves.draw(opened.run.lines.path, picture, config.eval.select_by)
        _keep(directory, result, ranks)
    return result


def _keep(directory: Path, result: dict, ranks: dict) -> None:
    """What a report needs; result.json comes last and says that all is there."""
    if jax.process_index() == 0:
        with whole(directory / "ranks.npz") as file:
            np.savez_compressed(file, **ranks)
    write_json(directory / "result.json", result)


def evaluate_again(config, workdir: str, save: str = "") -> dict:
    """The result of a finished run, ranked anew under the `eval` settings of now.

    Args:
      save: a directory to keep it in, like a run of its own for `create_jax.report`.
    """
    settings.check(config)
    place = Path(save).absolute()
    if save:
        check_writable(place)
        refuse_other_config(place, config, FREE_TO_CHANGE)
    opened, fitted, selection = reopen(config, workdir)
    if save:
        refuse_other_data(place, opened.facts["data"])
    result, ranks = test(opened, fitted, selection)
    if save:
        with hold(place):
            mark(place, config, opened.facts["data"], FREE_TO_CHANGE)
            if jax.process_index() == 0:  # never an old result beside new ranks
                (place / "result.json").unlink(missing_ok=True)
            _keep(place, result, ranks)
    return result


def reopen(config, workdir: str) -> tuple[Opened, Fitted | None, dict | None]:
    """A finished run as it ended: its data under the `eval` settings of now, its model,
    and the progress of the stage that chose its length. An InputError where it is not
    finished, or left no checkpoints: it would be trained again."""
    directory = Path(workdir).absolute()
    result = read_json(directory / "result.json")
    if result is None:
        raise InputError(
            f"{directory}: no finished run here (no result.json); train it first with "
            "--mode=train, or name its directory with --workdir"
        )
    if result["epochs"] and not (directory / "checkpoints").exists():
        raise InputError(
            f"{directory}: the parameters of this run are gone (no checkpoints); train "
            "it again into another --workdir, or bring them back"
        )
    refuse_other_config(directory, config, (*FREE_TO_CHANGE, "eval."))
    opened = open_run(config, directory)
    return opened, *_select_and_refit(opened, trains=False)


def open_run(config, directory: Path) -> Opened:
    """The data of a run, compared with what its directory was marked with; nothing is
    written."""
    log = protocol.load(config)
    settings.check_log(config, log)
    split = protocol.make_split(config, log)
    facts = protocol.describe(config, log, split)
    facts |= {"versions": _versions(), "git": _git_commit()}
    data = facts["data"]
    refuse_other_data(directory, data)
    span = " from {} to {}".format(*data["times"]) if "times" in data else ""
    say(
        f"{facts['dataset']}, {config.method}: {data['users']:,} users, "
        f"{data['items']:,} items, {data['interactions']:,} interactions{span}; "
        f"{data['train_interactions']:,} to learn from, "
        f"{data['test_queries']:,} test queries"
    )
    warn_of_hidden_targets(config, data)
    lines = JsonLines(directory / "metrics.jsonl")
    return Opened(Run(config, directory, parallel.make_mesh(), lines), split, facts)


def warn_of_hidden_targets(config, data: dict) -> None:
    """Says that targets stand in histories that are hidden."""
    shares = {"test": "targets_in_history_share"}
    shares["validation"] = "valid_targets_in_history_share"
    high = [
        f"{data[key]:.1%} of the {part} targets"
        for part, key in shares.items()
        if data[key] > NOTABLE
    ]
    if high and config.eval.filter_seen:
        say(
            f"warning: {' and '.join(high)} stand in their own history, which is not "
            "ranked, so that no method can hit them; where users come back to items, "
            "rank these too with --config.eval.filter_seen=False"
        )


def mark(directory: Path, config, data: dict, free: tuple[str, ...]) -> None:
    """Writes into a run's directory what it is a run of, or compares with what another
    process has written since the data were loaded."""
    refuse_other_config(directory, config, free)
    refuse_other_data(directory, data)
    if _begun(directory) is None:
        about = {"config": config.to_dict(), "data": data["fingerprint"]}
        write_json(directory / "config.json", about)


def _select_and_refit(
    opened: Opened, *, trains: bool = True
) -> tuple[Fitted | None, dict | None]:
    """The model to test, and the progress of the stage that chose its length."""
    run, split, _ = opened
    if run.config.method == "svd":
        return fit_svd(opened)
    if run.config.method in settings.COUNTING:
        return None, None
    phases, retrain = settings.make_phases(run.config), run.config.retrain.epochs
    stage = partial(fit, run, trains=trains)
    if split.valid is None:
        return stage("fixed", phases, split.refit, None), None
    chosen = stage("select", phases, split.train, split.valid)
    if retrain == "none":
        return chosen, chosen.progress
    share = 1.0
    if retrain == "scaled":
        share = len(split.train.users) / len(split.refit.users)
    short = shorten(phases, chosen.progress["best_epoch"], share)
    return stage("refit", short, split.refit, None), chosen.progress


def fit_svd(opened: Opened) -> tuple[Fitted, dict | None]:
    """PureSVD with the rank that does best on validation, from all rows to the cut."""
    (config, _, mesh, _), split, _ = opened
    start, chosen = time.monotonic(), None
    sides = split.train.n_users, split.train.n_items
    ranks = [rank for rank in config.svd.ranks if rank < min(sides)]
    if not ranks:
        raise InputError(
            f"config.svd.ranks is {tuple(config.svd.ranks)}; expected one below the "
            "{} users and {} items of the log".format(*sides)
        )

    def params(train, rank):
        pairs = make_pairs(train)
        shape = train.n_users, train.n_items + 1
        items = svd.item_factors(*pairs[:2], *shape, rank, config.svd.power)
        return {"items": items, "users": svd.user_vectors(*pairs[:2], shape[0], items)}

    rank = max(ranks)
    if split.valid is not None:
        scores = _validate_svd(opened, params(split.train, rank), ranks)
        by = config.eval.select_by
        rank = max(ranks, key=lambda rank: scores[rank][by])
        chosen = {"best_metrics": scores[rank] | {"rank": rank}, "seconds": {}}
        say(f"svd: rank {rank} of {ranks} by validation {by}")
    place = parallel.place(mesh, params(split.refit, rank))
    seconds = {"train": time.monotonic() - start}
    return Fitted(None, place, tuple, {"epoch": 0, "seconds": seconds}), chosen


def _validate_svd(opened: Opened, whole: dict, ranks) -> dict[int, dict]:
    """Validation metrics of each rank. The factors beyond a rank are set to zero, so
    that one program serves all."""
    mesh, found = opened.run.mesh, {}
    evaluator = _evaluator(opened, Fitted(None, whole, tuple, {}), opened.split.valid)
    for rank in ranks:
        within = np.arange(max(ranks)) < rank
        part = {name: values * within for name, values in whole.items()}
        found[rank] = evaluator.run(parallel.place(mesh, part), ()).metrics
    return found


def _evaluator(opened: Opened, fitted: Fitted | None, holdout, **rules):
    """Ranks a holdout by the run's method."""
    config, mesh = opened.run.config, opened.run.mesh
    score = _scorer(config, fitted, opened.split)
    mask = fitted.model.mask if fitted is not None and fitted.model is not None else 0
    return evaluate.make_evaluator(config, holdout, score, mesh, mask, **rules)


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


def _scorer(config, fitted: Fitted | None, split: Split):
    """The scores by which `config.method` ranks."""
    if fitted is None:
        train = split.refit
        counts = np.bincount(train.items, minlength=train.n_items + 1)
        return evaluate.counting_scores(counts, config.method, config.seed)
    if fitted.model is None:
        return evaluate.factor_scores(fold_in=config.svd.history == "full")
    return evaluate.model_scores(fitted.model, by_graph=_by_graph(fitted.model))


def _by_graph(model) -> bool:
    """Whether the graph's users are what ranks: there is no transformer."""
    return model.encoder is None


def _read_by_queries(fitted: Fitted | None) -> tuple:
    """(params, graph) that queries are scored from; the graph only where it is read."""
    if fitted is None:
        return {}, ()
    model = fitted.model
    reads = model is not None and model.system.queries_read_graph(
        model, by_graph=_by_graph(model)
    )
    return fitted.params, fitted.graph() if reads else ()


def test(opened: Opened, fitted, selection: dict | None) -> tuple[dict, dict]:
    """Ranks the test queries of every target rule: the whole content of result.json,
    and of ranks.npz, `<target>` and `<target>_users` [Q] for rules with one target."""
    config, split, facts = opened.run.config, opened.split, opened.facts
    start = time.monotonic()
    read = _read_by_queries(fitted)
    by_target, ranks, ties = {}, {}, 0.0
    for name, holdout in split.test.items():
        ranking = _evaluator(opened, fitted, holdout).run(*read)
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
    stages = [selection, fitted.progress if fitted else None]
    for progress in {id(p): p for p in stages if p}.values():
        for name, value in progress["seconds"].items():
            seconds[name] += value
    result = {
        "dataset": facts["dataset"],
        "method": config.method,
        "seed": config.seed,
        "protocol": facts["protocol"],
        "data": facts["data"],
        "valid": selection["best_metrics"] if selection else {},
        "test": by_target[config.eval.target],
        "test_by_target": by_target,
        "tied_targets_share": ties,
        "epochs": fitted.progress["epoch"] if fitted else 0,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "precision": config.model.precision,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": facts["versions"],
        "git": facts["git"],
    }
    return result, ranks


def show_example(config, workdir: str, least_history: int = 5) -> None:
    """Prints one real history and the ten items ranked first after it, by title."""
    opened, fitted, _ = reopen(config, workdir)
    split, titles = opened.split, protocol.titles(config)
    holdout = split.test[config.eval.target]
    long = np.flatnonzero(holdout.end - holdout.begin >= least_history)
    one = long[:1] if len(long) else np.array([0])
    query = holdout._replace(
        users=holdout.users[one],
        begin=holdout.begin[one],
        end=holdout.end[one],
        targets=holdout.targets[holdout.offsets[one]],
        offsets=np.array([0, 1]),
    )
    evaluator = _evaluator(opened, fitted, query, ks=(10,), keep_lists=True)
    top = evaluator.run(*_read_by_queries(fitted)).top[0]

    def name(item):
        external = split.refit.item_ids[int(item) - 1]
        return titles.get(external, external)

    history = query.log[query.begin[0] : query.end[0]]
    user = split.refit.user_ids[int(query.users[0])]
    say(f"User {user} last watched" + f" ({len(history)} in all):")
    for item in history[-least_history:]:
        say(f"      {name(item)}")
    say(f"and next (held out): {name(query.targets[0])}\n\nThe model's top ten:")
    for place, item in enumerate(top[top > 0], start=1):
        say(
            f"  {place:2d}  {name(item)}"
            + ("   <- " if item == query.targets[0] else "")
        )


def _versions() -> dict:
    """None for what is not installed, as this package where a checkout is run."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    names = ("create_jax", "jax", "flax", "optax", "jraph", "orbax-checkpoint", "numpy")
    found = {name: version(name) for name in names}
    return {"python": platform.python_version(), **found}


def _git_commit() -> str | None:
    """The commit of this source tree; None where it is not a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _begun(directory: Path) -> dict | None:
    """What a directory is a run of; None as long as nothing was trained in it: then it
    may become a run of something else."""
    if any(next(directory.glob(work), None) for work in WORK):
        return read_json(directory / "config.json")
    return None


def refuse_other_data(directory: Path, data: dict) -> None:
    """A run continues with its own data only."""
    started = _begun(directory)
    if started is not None and started["data"] != data["fingerprint"]:
        raise InputError(
            f"{directory} was trained on other data (fingerprint {started['data']}, "
            f"now {data['fingerprint']}); bring back the first or choose another "
            "--workdir"
        )


def refuse_other_config(directory: Path, config, free: tuple[str, ...]) -> None:
    """A run continues under its own config only; says what differs."""
    started = _begun(directory)
    if started is None:
        return
    old, new = (settings.of_run(c) for c in (started["config"], config.to_dict()))
    without_effect = unread(new)
    differ = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in without_effect
        and not settings.is_among(key, free)
    ]
    if differ:
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise InputError(
            f"{directory} holds a run of another config: {'; '.join(differ[:4])}"
            f"{more}; use that config again or choose another --workdir"
        )
