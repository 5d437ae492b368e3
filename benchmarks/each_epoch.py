"""Long runs that are ranked after every joint epoch, each kept in one file: the ground
of the studies of selection and of regularisation."""

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from create_jax import build, evaluate, parallel, rundir, train
from create_jax.data.interactions import Interactions
from create_jax.data.splits import Holdout
from create_jax.errors import InputError
from create_jax.files import whole, write_text
from create_jax.writers import JsonLines, say


class Curves(NamedTuple):
    """What the file of a run says. curves: column -> [E], a value of each joint epoch;
    about: its config, data, versions and seconds. ranks: of `keep_ranks`, if kept."""

    data: str
    method: str
    seed: int
    curves: dict[str, np.ndarray]
    about: dict = {}
    ranks: dict[str, np.ndarray] = {}


def is_there(file: Path, config) -> bool:
    """Whether a run is finished, and says so.

    Raises:
      InputError: it is, but not after as many epochs as the config says.
    """
    if not file.exists():
        return False
    with file.open() as lines:
        epochs = json.loads(next(lines))["config"]["train"]["epochs"]
    if epochs != config.train.epochs:
        raise InputError(
            f"{file} is there: a run of {epochs} joint epochs, and not of "
            f"{config.train.epochs}; name another --out, or as many --epochs"
        )
    say(f"{file} is there: finished")
    return True


def run(
    config,
    facts: dict,
    log: Interactions,
    holdouts: dict[str, Holdout],
    file: Path,
    *,
    selects: str,
    measure: Callable = lambda holdout, ranking: ranking.metrics,
    **rules,
) -> Path:
    """Trains on `log` for as long as the config says, ranks all holdouts after each
    joint epoch, and writes `file`. A run that was stopped goes on: its checkpoints and
    metrics.jsonl are in a directory beside the file, of its name.

    Args:
      config: with as much patience as epochs, so that nothing ends it early.
      facts: of `protocol.describe`.
      selects: the column that stands for what the config selects by; `<key of a
        holdout>/<metric>`.
      measure: (Holdout, Ranking) -> metrics by name.
      rules: of `evaluate.Evaluator`.
    """
    facts, directory = facts | rundir.program(), file.with_suffix("")
    free = rundir.FREE_TO_CHANGE
    rundir.check(directory, config, free)
    with rundir.hold(directory):
        rundir.mark(directory, config, facts["data"], free)
        lines = JsonLines(directory / "metrics.jsonl")
        opened = rundir.Run(config, directory, parallel.make_mesh(), lines)
        rank = _ranker(opened, log, holdouts, measure, rules)

        def validate(params, graph, phase) -> dict[str, float]:
            if phase.name == "warmup":
                return {}
            found = rank(params, graph)
            return found | {config.eval.select_by: found[selects]}

        phases, any_one = build.make_phases(config), next(iter(holdouts.values()))
        fitted = train.fit(opened, "select", phases, log, any_one, validate=validate)
        settings = config.to_dict()
        settings["data"]["path"] = ""  # where it lay on one machine
        about = facts | {
            "method": config.method,
            "seed": config.seed,
            "queries": {key: holdout.n_queries for key, holdout in holdouts.items()},
            "seconds": fitted.progress.seconds,
            "config": settings,
        }
        _write(file, about, directory / "metrics.jsonl", tuple(holdouts))
    return file


def keep_ranks(config, log: Interactions, holdout: Holdout, file: Path) -> None:
    """Writes, beside the file of a finished run, how many items rank before each target
    of a holdout, with the parameters of the epoch that it selected (`best`) and with
    the last ones (`last`): [Q], where the largest cut-off stands for all ranks
    from there on."""
    path = file.with_suffix(".npz")
    if path.exists():
        return
    directory, cut = file.with_suffix(""), max(config.eval.ks)
    found, phases = {}, build.make_phases(config)
    with rundir.hold(directory):
        mesh, lines = parallel.make_mesh(), JsonLines(directory / "metrics.jsonl")
        opened = rundir.Run(config, directory, mesh, lines)
        for name, given in (("best", holdout), ("last", None)):
            fitted = train.fit(opened, "select", phases, log, given, trains=False)
            evaluator = evaluate.make_evaluator(
                config, holdout, fitted.score, mesh, lists=False, **fitted.reads
            )
            ranks = evaluator.run(fitted.params, fitted.graph()).ranks
            found[name] = np.minimum(ranks, cut).astype(np.min_scalar_type(cut))
        with whole(path) as to:
            np.savez_compressed(to, **found)


def _ranker(run: rundir.Run, log: Interactions, holdouts, measure, rules) -> Callable:
    """(params, graph) -> `<key>/<metric>` of all holdouts."""
    config = run.config
    model = build.make_model(config, log.n_users, log.n_items)
    score = evaluate.model_scores(model, run.mesh, by_graph=False)
    evaluators = {
        key: evaluate.make_evaluator(
            config, holdout, score, run.mesh, model.mask, **rules
        )
        for key, holdout in holdouts.items()
    }

    def rank(params, graph) -> dict[str, float]:
        found = {}
        for key, evaluator in evaluators.items():
            metrics = measure(evaluator.holdout, evaluator.run(params, graph))
            found |= {f"{key}/{name}": value for name, value in metrics.items()}
        return found

    return rank


def _write(file: Path, about: dict, lines: Path, keys: tuple[str, ...]) -> None:
    """The file of a finished run: a line about it, then one a joint epoch, whose values
    are those of `about["columns"]`."""
    records = map(json.loads, lines.read_text().splitlines())
    records = [one for one in records if one["phase"] != "warmup"]
    ours = tuple(f"valid/{key}/" for key in keys)
    names = [name for name in records[0] if name.startswith(ours)]
    columns = [name.removeprefix("valid/") for name in names]
    made = [json.dumps(about | {"columns": columns})]
    for epoch, record in enumerate(records, start=1):
        values = [float(f"{record[name]:.6g}") for name in names]
        made.append(json.dumps({"epoch": epoch, "values": values}))
    write_text(file, "\n".join(made) + "\n")


def save(figure, picture: Path, dpi: int) -> None:
    """Writes a PNG of 64 colours, with a quarter of the bytes that all take: it lies in
    the repository."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as image, whole(picture) as file:
        image.convert("RGB").quantize(64).save(file, format="png", optimize=True)


def parse(
    arguments: list[str] | None, study: str, about: str, epochs: int, **options: dict
) -> argparse.Namespace:
    """The flags of a study: `run` with its own options, and `table`.

    Args:
      options: more of `run`: name -> what argparse's add_argument takes.
    """
    parser = argparse.ArgumentParser(description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("data", help="beauty, ml1m, or another packaged config")
    for name, form in options.items():
        one.add_argument(name, **form)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--path", default="", help="the log, where not at its usual place")
    one.add_argument("--epochs", type=int, default=epochs, help="joint ones")
    one.add_argument("--out", type=Path, default=Path(f"runs/{study}"))
    one = commands.add_parser("table")
    one.add_argument("directory", type=Path)
    return parser.parse_args(arguments)


def read_all(directory: Path, study: str) -> list[Curves]:
    """The finished runs of a directory.

    Raises:
      InputError: there are none.
    """
    files = sorted(directory.glob("*.jsonl"))
    if not files:
        raise InputError(
            f"{directory}: found no *.jsonl of a finished run; expected those of "
            f"`python -m benchmarks.{study} run`"
        )
    return [read(file) for file in files]


def by_data(runs: list[Curves]) -> dict[str, list[Curves]]:
    """The runs of each data set."""
    found = {}
    for one in runs:
        found.setdefault(one.data, []).append(one)
    return found


def read(file: Path) -> Curves:
    """A run's file."""
    about, *lines = map(json.loads, file.read_text().splitlines())
    values = np.array([line["values"] for line in lines])
    found = dict(zip(about["columns"], values.T, strict=True))
    ranks, kept = {}, file.with_suffix(".npz")
    if kept.exists():
        with np.load(kept) as arrays:
            ranks = dict(arrays)
    return Curves(about["dataset"], about["method"], about["seed"], found, about, ranks)
