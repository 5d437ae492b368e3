"""`--mode=tune`: settings chosen on validation, never on test, by an Optuna study.

A study is a directory: `study.log` (Optuna's journal, which processes may share),
`trial-<n>/` with the metrics of each trial, `config.json`, `trials.csv`, a row a trial
that has ended, and `best.py`, a config that adds the chosen settings to config.json.
The first trial is the unchanged config. A trial is pruned if it is worse than the
median of the other trials at the same epoch of the last phase. Pruning starts after ten
epochs of that phase, because a slow start may end well. When a process is killed,
another process continues its trial from the last checkpoint. A lock shows which trials
have a process.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax

from create_jax import build, cluster, methods, rundir, settings, train
from create_jax.errors import InputError, StorageError
from create_jax.files import csv_text, is_remote, lock, write_text
from create_jax.unread import unread
from create_jax.writers import JsonLines, read_json, say

KINDS = ("log", "uniform", "integer", "choice")


# Settings that all trials of a study share: the data, the queries, the method.
NOT_OF_A_TRIAL = (
    *("method", "seed", "compare", "example", "data.", "split.", "eval.", "tune."),
    *("checkpoint.", "retrain."),
)


class Dimension(NamedTuple):
    """A setting to choose: `log`, `uniform` and `integer` have two ends, `choice` its
    values."""

    key: str
    kind: str
    values: tuple


def make_space(config) -> list[Dimension]:
    """The dimensions of `config.tune.space`; InputError for one that is wrong. Of the
    method's own space those without effect are left out."""
    flat = settings.flatten(config.to_dict())
    space = [_dimension(flat, entry) for entry in config.tune.space]
    if not space:
        raise InputError("config.tune.space is empty; expected settings to choose")
    without_effect = set.intersection(*map(unread, variants(config, space)))
    found = [one for one in space if one.key not in without_effect]
    default = methods.find(config.method).defaults.get("tune.space", methods.SEARCH)
    if found != space and space != [_dimension(flat, entry) for entry in default]:
        idle = next(one.key for one in space if one.key in without_effect)
        raise InputError(
            f"config.tune.space has {idle}, which {config.method} does not read under "
            "the other settings; set --config.tune.space without it"
        )
    return found


def variants(config, space: list[Dimension]) -> list[dict]:
    """The config with each value of each dimension, flat."""
    flat = settings.flatten(config.to_dict())
    return [flat | {one.key: value} for one in space for value in one.values]


def _dimension(flat: dict, entry) -> Dimension:
    text = f"config.tune.space has {entry!r}; expected "
    if not isinstance(entry, tuple | list) or len(entry) < 3:
        raise InputError(f"{text}(setting, kind, low, high) or (.., 'choice', ..)")
    key, kind, *values = entry
    if kind not in KINDS:
        raise InputError(f"{text}a kind out of {', '.join(KINDS)}")
    if key not in flat:
        raise InputError(f"{text}the name of a setting first")
    if key.startswith(NOT_OF_A_TRIAL):
        raise InputError(f"{text}another setting: all trials of a study share this one")
    start, ends = flat[key], kind != "choice"
    if ends:
        numbers = [type(value) in (int, float) for value in (start, *values)]
        if not all(numbers) or (isinstance(start, int) and kind != "integer"):
            raise InputError(f"{text}the kind and numbers of a setting like {start!r}")
        if len(values) != 2 or not values[0] < values[1]:
            raise InputError(f"{text}a low and a higher end")
    if kind == "log" and values[0] <= 0:
        raise InputError(f"{text}ends above 0")
    if not ends:
        values = json.loads(json.dumps(values))  # tuples are lists in a flat config
    inside = values[0] <= start <= values[1] if ends else start in values
    if not inside:
        raise InputError(f"{text}{start!r} in it, the config's own and first trial")
    return Dimension(key, kind, tuple(values))


def tune(config, workdir: str) -> Path:
    """Runs trials until the study has `config.tune.trials`; writes and returns best.py.

    Raises:
      InputError: without the extra `tune`, without a validation part, for methods that
        do not train, in a cluster, or if another study lives in the directory.
    """
    optuna = _import_optuna()
    space = check(config)
    directory = rundir.locate(workdir)
    if is_remote(directory):
        raise InputError(
            f"--workdir={workdir}: a study is a journal that its processes share on a "
            "disk; name a directory on one"
        )
    rundir.check(directory, config, rundir.FREE_IN_A_STUDY)
    opened = rundir.open_run(config, directory)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with rundir.hold(directory, timeout=30):  # briefly: others may join
        rundir.mark(directory, config, opened.facts["data"], rundir.FREE_IN_A_STUDY)
        file = str(directory / "study.log")
        journal = optuna.storages.journal.JournalFileBackend(file)
        study = optuna.create_study(
            study_name="tune",
            storage=optuna.storages.JournalStorage(journal),
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=10),
            load_if_exists=True,
        )
        first = {one.key: settings.read(config, one.key) for one in space}
        if not study.trials:
            study.enqueue_trial(first)
    while True:
        _write_trials(study, config, directory, space)
        found = _take(study, directory, config, optuna)
        if found is None:
            break
        trial, held = found
        with held:
            _run(study, trial, opened, space, optuna)
    return _write_best(study, config, directory, space, optuna)


def _import_optuna():
    try:
        import optuna
    except ImportError:
        raise InputError(
            "--mode=tune needs optuna; pip install 'create_jax[tune]'"
        ) from None
    return optuna


def check(config) -> list[Dimension]:
    """The space of a study; an InputError for what cannot be tuned."""
    build.check(config)
    if methods.find(config.method).kind == "free":
        raise InputError(f"{config.method} has nothing to tune over epochs")
    if config.split.validation == "none":
        raise InputError(
            "config.split.validation is 'none'; tuning chooses on validation: set "
            "--config.split.validation=by_time"
        )
    if jax.process_count() > 1:
        raise InputError(
            "--mode=tune was started on several processes of one cluster; start each "
            "by itself, with --nodistributed and the same --workdir"
        )
    return make_space(config)


def _take(study, directory, config, optuna):
    """A trial and its lock: one that has lost its process, else a new one. None when
    the study has enough trials."""
    states = optuna.trial.TrialState
    ended = under_way = 0
    for frozen in study.get_trials(deepcopy=False):
        state = frozen.state
        if state == states.RUNNING:
            held = _lock(directory, frozen.number)
            if held is not None:
                # Its process may have ended it and let go since the question.
                state = study.get_trials(deepcopy=False)[frozen.number].state
                if state == states.RUNNING:
                    return optuna.trial.Trial(study, frozen._trial_id), held
                with held:
                    pass
            under_way += held is None
        ended += state in (states.COMPLETE, states.PRUNED)
    if ended + under_way >= config.tune.trials:
        return None
    trial = study.ask()
    held = _lock(directory, trial.number)
    if held is None:  # another process saw the trial before it was locked and took it
        return _take(study, directory, config, optuna)
    return trial, held


def _lock(directory: Path, number: int):
    """The lock of a trial, or None where another process holds it."""
    place = directory / f"trial-{number:04d}"
    place.mkdir(exist_ok=True)
    return lock(place / "lock")


def _run(study, trial, opened, space, optuna) -> None:
    """One trial: the `select` stage of a run with other settings."""
    states = optuna.trial.TrialState
    # Seeded by the number of the trial: one process repeats itself, and processes that
    # ask at the same time draw apart.
    seed = (1000 * opened.run.config.seed + trial.number) % 2**32  # what NumPy takes
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
    chosen = {one.key: _suggest(trial, one) for one in space}
    config = opened.run.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(chosen)
    directory = opened.run.workdir / f"trial-{trial.number:04d}"
    shown = ", ".join(f"{key}={settings.shown(value)}" for key, value in chosen.items())
    say(f"trial {trial.number}: {shown}")
    known = set(study.trials[trial.number].intermediate_values)

    def should_end(epoch: int, score: float) -> bool:
        if epoch not in known:  # a continued trial repeats some epochs
            trial.report(score, epoch)
        return bool(trial.should_prune())  # a numpy.bool is no JSON

    lines = JsonLines(directory / "metrics.jsonl")
    run = opened.run._replace(config=config, workdir=directory, lines=lines)
    try:
        build.check(config)
        build.check_log(config, opened.log)
        phases = build.make_phases(config)
        progress = train.fit(
            *(run, "select", phases, opened.split.train, opened.split.valid),
            should_end=should_end,
        ).progress
    except (StorageError, OSError, cluster.Leaving):  # no fault of the settings
        raise  # the trial is continued later
    except InputError as error:  # these settings cannot work, or the loss diverged
        say(f"trial {trial.number}: failed: {error}")
        study.tell(trial, state=states.FAIL)
        if sum(t.state == states.FAIL for t in study.trials) > 10:
            raise InputError(
                f"more than 10 trials failed, the last with: {error}"
            ) from None
    except Exception:  # a fault, or too little memory: who comes next tries another
        study.tell(trial, state=states.FAIL)
        raise
    else:
        trial.set_user_attr("best_epoch", progress.best_epoch)
        early = progress.ended_early
        if early:
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, progress.best_score)
        by = f"{config.eval.select_by} {progress.best_score:.4f}"
        at = f"epoch {progress.best_epoch}"
        say(f"trial {trial.number}: {by} at {at}{', ended early' if early else ''}")
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _suggest(trial, one: Dimension):
    if one.kind == "choice":
        return trial.suggest_categorical(one.key, one.values)
    if one.kind == "integer":
        return trial.suggest_int(one.key, *one.values)
    return trial.suggest_float(one.key, *one.values, log=one.kind == "log")


def _write_trials(study, config, directory: Path, space) -> None:
    """trials.csv: of each trial that has ended the epoch of its last phase that was
    best and the score there, also if it was pruned later, and its settings."""
    head = "trial", "state", "epoch", config.eval.select_by
    rows = [[*head, *(one.key for one in space)]]
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        epochs, scores = sorted(trial.intermediate_values), []
        for n in range(1, len(epochs) + 1):  # as train.after_epoch does
            recent = epochs[:n][-config.eval.select_mean :]
            found = [trial.intermediate_values[epoch] for epoch in recent]
            scores.append(sum(found) / len(found))
        best = max(scores, default="")
        where = epochs[scores.index(best)] if scores else ""
        shown = [trial.params.get(one.key, "") for one in space]
        rows.append([trial.number, trial.state.name.lower(), where, best, *shown])
    write_text(directory / "trials.csv", csv_text(rows))


def _write_best(study, config, directory: Path, space, optuna) -> Path:
    """best.py: the settings of the best trial that differ from the study's config.json,
    and how they were found."""
    states = optuna.trial.TrialState
    if not study.get_trials(deepcopy=False, states=[states.COMPLETE]):
        raise InputError(f"{directory}: no trial has ended; others work on them still")
    best, by = study.best_trial, config.eval.select_by
    chosen = {one.key: best.params[one.key] for one in space}
    final = config.copy_and_resolve_references()
    with final.unlocked():
        final.update_from_flattened_dict(chosen)
    before = sum(phase.epochs for phase in build.make_phases(final)[:-1])
    epochs = best.user_attrs["best_epoch"] - before
    ended = [t for t in study.trials if t.state.is_finished()]
    about = (
        f"{config.data.name}, {config.method}: trial {best.number} of {len(ended)}, "
        f"validation {by} {best.value:.6f}"
        f" after {epochs}{' joint' if before else ''} epochs"
    )
    # A continued study may have other values of settings that change no number.
    first = settings.flatten(read_json(directory / "config.json")["config"])
    now = settings.flatten(config.to_dict())
    moved = {
        key: value
        for key, value in now.items()
        if first.get(key, value) != value and not key.startswith(("compare", "tune."))
    }
    write_text(directory / "best.py", _best_file(about, epochs, chosen | moved))
    lines = [f"  {key} = {value!r}" for key, value in chosen.items()]
    say(f"\nBest of {len(ended)} trials: {about}\n" + "\n".join(lines))
    say(f"\npython -m create_jax.main --config={directory / 'best.py'}")
    return directory / "best.py"


def _quoted(value) -> str:
    """A value as Python has it, text in the quotes that a formatter prefers."""
    plain = isinstance(value, str) and value.isprintable()
    return json.dumps(value, ensure_ascii=False) if plain else repr(value)


def _best_file(about: str, epochs: int, chosen: dict) -> str:
    """The text of best.py."""
    lines = [f"    {_quoted(key)}: {_quoted(value)}," for key, value in chosen.items()]
    text = [
        f'"""{about}.\n',
        "What --mode=tune chose, on top of config.json beside this file. Without early",
        "stopping, on all rows up to the test for as long:\n",
        f"  --config.split.validation=none --config.train.epochs={epochs}",
        '"""\n',
        "from create_jax.config_file import of_study\n",
        "CHOSEN = {",
        *lines,
        "}\n\n",
        "def get_config():",
        "    return of_study(__file__, CHOSEN)\n",
    ]
    return "\n".join(text)
