"""Whether CREATE's gain is a gain over a badly regularised SASRec.

python -m benchmarks.regularisation run beauty sasrec --dropout=0.2 --seed=0 --path=FILE
python -m benchmarks.regularisation run beauty create@align.kind=none --dropout=0.2
python -m benchmarks.regularisation table runs/regularisation

`run` trains a system, a method and perhaps settings after an @, with one dropout on all
rows up to the test, for a fixed number of joint epochs, and ranks the test queries of
target `last` after each. All systems share the learning rate and the weights that
CREATE's study chose. Nothing is chosen by these numbers: they say how the gain goes
with dropout and length.

`table` prints the gain over epochs for each dropout, and against what SASRec lacks
there of its best, and draws both. Of the best and of the last epoch of a run the ranks
are kept, so that the gains there have intervals. It also says which epochs are nearest
to what the paper prints.
"""

import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import each_epoch, selection, warm_start
from benchmarks.each_epoch import Curves
from create_jax import build, curves, paired, protocol, report
from create_jax.errors import exit_code
from create_jax.metrics import from_ranks

BASELINE = "sasrec"
METRICS = ("ndcg@10", "recall@100")  # that are shown
SHOWN = (5, 10, 15, 20, 30, 40, 60, 80, 100)
KEY = "test/last"
WHEN = {"best": "best epochs", "last": "the last"}


# --- run ------------------------------------------------------------------------------


def make_config(data: str, system: str, dropout: float, seed: int, epochs: int):
    """CREATE's settings for all systems, with this dropout."""
    method, _, others = system.partition("@")
    tuned = selection.make_config(data, "create", seed, epochs)
    config = selection.make_config(data, method, seed, epochs)
    config.optim.lr, config.seq.dropout = tuned.optim.lr, dropout
    config.split.validation, config.eval.targets = "none", ("last",)
    for key, _, text in (one.partition("=") for one in others.split(",") if one):
        try:
            value = json.loads(text)
        except ValueError:  # a name
            value = text
        config.update_from_flattened_dict({key: value})
    return config


def run(config, system: str, out: Path) -> Path:
    """Trains, and ranks after each joint epoch; returns the file that `table` reads."""
    name = f"{config.data.name}-{system}-dropout={config.seq.dropout}-{config.seed}"
    file = out / f"{name}.jsonl"
    there = each_epoch.is_there(file, config)
    if there and file.with_suffix(".npz").exists():
        return file
    build.check(config)
    log = protocol.load(config)
    split = protocol.make_split(config, log)
    if "warm_start" in config:
        warm_start.prepare(split.refit, config.warm_start.start, config.model.dim)
    facts = protocol.describe(config, log, split) | {"system": system}
    holdouts, selects = {KEY: split.test["last"]}, f"{KEY}/{config.eval.select_by}"
    if not there:
        each_epoch.run(config, facts, split.refit, holdouts, file, selects=selects)
    each_epoch.keep_ranks(config, split.refit, holdouts[KEY], file)
    return file


# --- table ----------------------------------------------------------------------------


def dropout_of(one: Curves) -> float:
    return one.about["config"]["seq"]["dropout"]


def means(runs: list[Curves]) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Metrics [E] in percent of each (system, dropout), averaged over seeds; for as
    many epochs as all of these have."""
    found = {}
    for one in runs:
        found.setdefault((one.about["system"], dropout_of(one)), []).append(one.curves)

    def mean(curves):
        return 100 * np.mean([one[: min(map(len, curves))] for one in curves], axis=0)

    return {
        key: {
            name: mean([curves[f"{KEY}/{name}"] for curves in own]) for name in METRICS
        }
        for key, own in found.items()
    }


def systems_of(found: dict) -> list[str]:
    """SASRec, CREATE, and the others by name."""
    names = {system for system, _ in found}
    return sorted(names, key=lambda one: (one != BASELINE, one))


def dropouts_of(found: dict) -> list[float]:
    return sorted({dropout for _, dropout in found})


def gains(found: dict, system: str, name: str) -> dict[float, np.ndarray]:
    """Dropout -> [E] what a system has over SASRec of the same dropout and epoch, in
    percent of SASRec; for as many epochs as both have."""
    ratios = {}
    for dropout in dropouts_of(found):
        pair = [found.get((one, dropout), {}).get(name) for one in (system, BASELINE)]
        if pair[0] is not None and pair[1] is not None:
            both = min(map(len, pair))
            ratios[dropout] = 100 * pair[0][:both] / pair[1][:both] - 100
    return ratios


def lacks(found: dict, name: str) -> dict[float, np.ndarray]:
    """Dropout -> [E] what SASRec lacks of its best of all dropouts and epochs, in
    percent of that."""
    own = {
        d: values[name] for (system, d), values in found.items() if system == BASELINE
    }
    best = max(values.max() for values in own.values())
    return {dropout: 100 - 100 * values / best for dropout, values in own.items()}


def points(found: dict, system: str, name: str) -> np.ndarray:
    """[N, 4] (dropout, epoch, what SASRec lacks, gain) of the epochs from that on where
    SASRec of the dropout is at its best: before it, it is only not trained enough."""
    rows, missing = [], lacks(found, name)
    for dropout, gain in gains(found, system, name).items():
        first = int(np.argmin(missing[dropout]))
        for epoch in range(first, len(gain)):
            rows.append([dropout, epoch + 1, missing[dropout][epoch], gain[epoch]])
    return np.array(rows).reshape(-1, 4)


def printed_row(data: str, method: str) -> dict[str, float]:
    """Table 2's metrics of a method, in percent; {} where it has none."""
    row = report.paper_result(data, method) or {}
    return {name: value for name, (value, _) in row.items()}


def printed(data: str, method: str, name: str) -> float | None:
    return printed_row(data, method).get(name)


def paper_point(found: dict, data: str, name: str) -> tuple[float, float] | None:
    """(what the paper's SASRec lacks of our best one, the gain of its CREATE), percent;
    None for data that it does not have."""
    theirs, create = (printed(data, method, name) for method in (BASELINE, "create"))
    own = [x[name].max() for (system, _), x in found.items() if system == BASELINE]
    if not own or not theirs or not create:
        return None
    ours = max(own)
    return 100 - 100 * theirs / ours, 100 * create / theirs - 100


def tables(runs: list[Curves]) -> str:
    """Markdown of one data set's runs."""
    found, parts = means(runs), [_about(runs)]
    if compared := _compared(runs):
        parts += ["## How sure the gains are", compared]
    if nearest := _nearest(runs):
        parts += ["## Which training is the paper's", nearest]
    seeds = Counter((one.about["system"], dropout_of(one)) for one in runs)
    for name in METRICS:
        parts += [f"## {name}", _over_epochs(found, name, seeds)]
        if any(system == BASELINE for system, _ in found):
            parts.append(_law(found, runs[0].data, name))
    return "\n\n".join(parts) + "\n"


def _about(runs: list[Curves]) -> str:
    seeds = sorted({one.seed for one in runs})
    about = runs[0].about
    commits = sorted({(one.about.get("git") or "")[:7] for one in runs})
    asked = about["queries"][KEY]
    return (
        f"{len(runs)} runs of {about['dataset']}, seeds {', '.join(map(str, seeds))}, "
        f"{asked:,} queries, made at {', '.join(commits)}. Values are percent, means "
        "over seeds; gains are percent of SASRec with the same dropout after the same "
        "joint epoch."
    )


def _compared(runs: list[Curves]) -> str:
    """Paired differences to SASRec and to CREATE with the same dropout: of runs that
    kept their ranks."""
    kept = [one for one in runs if one.ranks]
    if not kept:
        return ""
    places = {}
    for one in sorted(kept, key=lambda one: one.seed):
        places.setdefault((one.about["system"], dropout_of(one)), []).append(one)
    rows, found = [], []
    pairs = [(one, BASELINE) for one in systems_of(places)[1:]]
    pairs += [(one, "create") for one, _ in pairs if one != "create"]
    for dropout, (system, base) in product(dropouts_of(places), pairs):
        pair = places.get((system, dropout)), places.get((base, dropout))
        if None in pair:
            continue
        for name in METRICS:
            seeds = min(map(len, pair))
            rows.append([dropout, f"{system} - {base}", seeds, name])
            same_seeds = len({tuple(one.seed for one in own) for own in pair}) == 1
            for when in WHEN:
                both = (_of_queries(own, when, name) for own in pair)
                found.append(paired.relative(*both, same_seeds))
    if not rows:
        return ""
    cells = [
        f"{report.interval(one.mean, one.low, one.high, 1)}, p {report.p_value(p)}"
        for one, p in zip(found, paired.holm([one.p for one in found]), strict=True)
    ]
    for number, row in enumerate(rows):
        row += cells[len(WHEN) * number :][: len(WHEN)]
    text = (
        "Percent of what is subtracted: gain (interval of 95%), p. Paired over users "
        "and, of several, over seeds (`create_jax/paired.py`); p corrected by Holm "
        "over this table. Of one seed both leave out the chance of training. The best "
        "epoch of a run is that of its highest NDCG@10 on these same queries, for both "
        "metrics."
    )
    head = ["dropout", "difference", "seeds", "metric", *WHEN.values()]
    return text + "\n\n" + report.markdown_table(head, rows)


def _of_queries(runs: list[Curves], when: str, name: str) -> np.ndarray:
    """[N, S] a metric of the queries, one of each user, in the runs of a system."""
    cut = int(name.split("@")[1])
    of = [from_ranks(one.ranks[when].astype(int), cut)[name] for one in runs]
    return np.column_stack(of)


def _nearest(runs: list[Curves]) -> str:
    """The epoch of each run whose metrics are nearest to what the paper prints: of the
    methods as they are, or of their variants where they are not among the runs."""
    rows, names = [], []
    systems = systems_of([(one.about["system"], None) for one in runs])
    for system in systems:
        method = system.split("@")[0]
        row = printed_row(runs[0].data, method)
        if not row or (system != method and method in systems):
            continue
        names = list(row)
        printed_cells = [f"*{value:g}*" for value in row.values()]
        head = [f"*{method}, as printed*", "", "", "", *printed_cells, ""]
        rows += [] if head in rows else [head]
        own = [one for one in runs if one.about["system"] == system]
        for one in sorted(own, key=lambda one: (dropout_of(one), one.seed)):
            ours = np.array([100 * one.curves[f"{KEY}/{name}"] for name in names])
            theirs = np.array(list(row.values()))[:, None]
            apart = np.abs(np.log(ours / theirs)).mean(0)
            epoch = int(apart.argmin())
            cells = [f"{value:.2f}" for value in ours[:, epoch]]
            about = [system, dropout_of(one), one.seed, epoch + 1]
            rows.append([*about, *cells, f"{apart[epoch]:.3f}"])
    if not rows:
        return ""
    text = (
        "Of each run the epoch whose metrics are nearest to the paper's, by the mean "
        "distance of their logarithms (0.1 is a tenth)."
    )
    head = ["system", "dropout", "seed", "epoch", *names, "distance"]
    return text + "\n\n" + report.markdown_table(head, rows)


def _over_epochs(found: dict, name: str, seeds: Counter) -> str:
    length = max(len(values[name]) for values in found.values())
    shown = [epoch for epoch in SHOWN if epoch <= length]
    rows = []
    for dropout, system in product(dropouts_of(found), systems_of(found)):
        if (system, dropout) not in found:
            continue
        values = found[system, dropout][name]
        if system == BASELINE or (BASELINE, dropout) not in found:
            cells = _at(values, shown, "{:.2f}")
            cells.append(f"{values.max():.2f} ({1 + int(values.argmax())})")
        else:
            gain = gains(found, system, name)[dropout]
            best = 100 * values.max() / found[BASELINE, dropout][name].max() - 100
            best = f"{best:+.1f}% ({1 + int(values.argmax())})"
            cells = [*_at(gain, shown, "{:+.1f}%"), best]
        rows.append([dropout, system, seeds[system, dropout], *cells])
    head = ["dropout", "system", "seeds", *(f"after {epoch}" for epoch in shown)]
    return report.markdown_table([*head, "best of each (after)"], rows)


def _at(values: np.ndarray, epochs: list[int], form: str) -> list[str]:
    """The values after these epochs, "" after the last."""
    return [form.format(values[e - 1]) if e <= len(values) else "" for e in epochs]


def _law(found: dict, data: str, name: str) -> str:
    """Gain against what SASRec lacks, in thirds."""
    rows = []
    for system in systems_of(found):
        at = points(found, system, name)
        if system == BASELINE or len(at) < 3:
            continue
        order = stats.spearmanr(at[:, 2], at[:, 3]).statistic
        cells = []
        for part in np.array_split(at[np.argsort(at[:, 2])], 3):
            low, high = part[:, 2].min(), part[:, 2].max()
            cells.append(f"{part[:, 3].mean():+.1f}% ({low:.0f} to {high:.0f})")
        rows.append([system, *cells, f"{order:.2f}"])
    text = (
        "From the best epoch of SASRec with each dropout on: the mean gain where "
        "SASRec lacks least, more and most of its best of all dropouts (from, to "
        "percent), and the rank correlation of both over dropouts and epochs. "
        "Neighbouring epochs are no independent points, and both are made of the same "
        "SASRec: of a system that never fell, the correlation would be 1."
    )
    if point := paper_point(found, data, name):
        text += " The paper's SASRec lacks {:.0f}%, its CREATE gains {:+.1f}%.".format(
            *point
        )
    head = ["system", "lacks least", "more", "most", "rank correlation"]
    return text + "\n\n" + report.markdown_table(head, rows)


def draw(runs: list[Curves], picture: Path) -> None:
    """Metrics over epochs, a column for each dropout, the paper's values as dotted
    lines; below, gains against what SASRec lacks, the paper's as stars. Of the systems
    that were run with the most dropouts."""
    from matplotlib.figure import Figure

    data, most = runs[0].data, Counter(system for system, _ in means(runs))
    runs = [x for x in runs if most[x.about["system"]] == max(most.values())]
    found = means(runs)
    systems, dropouts = systems_of(found), dropouts_of(found)
    columns = max(len(dropouts), min(len(systems) - 1, 4))
    others = systems[1 : 1 + columns] if systems[0] == BASELINE else []
    rows = len(METRICS) + bool(others)
    figure = Figure(figsize=(max(3 * columns, 5), 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, name in zip(panels, METRICS, strict=False):
        for panel in row[len(dropouts) :]:
            panel.set_axis_off()
        for panel, dropout in zip(row, dropouts, strict=False):
            for number, system in enumerate(systems):
                if (system, dropout) in found:
                    values = found[system, dropout][name]
                    epochs = 1 + np.arange(len(values))
                    panel.plot(epochs, values, color=f"C{number}", lw=1, label=system)
            methods = [system.split("@")[0] for system in systems]
            for method in dict.fromkeys(methods):
                if value := printed(data, method, name):
                    color = f"C{methods.index(method)}"
                    panel.axhline(value, color=color, ls=":", lw=0.8)
            panel.set_title(f"dropout {dropout}", fontsize="small")
            panel.set(ylabel=name, xlabel="joint epoch")
            panel.grid(alpha=0.3)
    panels[0][0].legend(frameon=False, fontsize="x-small")
    for panel, system in zip(panels[-1], others, strict=False):
        for number, name in enumerate(METRICS):
            at, look = points(found, system, name), dict(color=f"C{number + 2}")
            panel.scatter(at[:, 2], at[:, 3], s=4, label=name, **look)
            point = paper_point(found, data, name)
            if system == "create" and point:
                panel.plot(*point, "*", label="the paper's", **look)
        panel.set_title(system, fontsize="small")
        panel.set(xlabel="SASRec lacks of its best, %", ylabel="gain, %")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize="x-small")
    for panel in panels[-1][len(others) :] if others else []:
        panel.set_axis_off()
    each_epoch.save(figure, picture, dpi=80)


def table(directory: Path) -> None:
    """Prints the tables of a directory's runs and draws a picture for each data set."""
    runs = each_epoch.read_all(directory, "regularisation")
    for data, own in each_epoch.by_data(runs).items():
        print(tables(own), end="")
        picture = directory / f"{data}.png"
        with curves.optional(picture):
            draw(own, picture)


def main(arguments: list[str] | None = None) -> int:
    flags = each_epoch.parse(
        *(arguments, "regularisation", __doc__.splitlines()[0], 40),
        **{
            "system": {"help": "METHOD or METHOD@setting=value,..."},
            "--dropout": {"type": float, "required": True},
        },
    )

    def act():
        if flags.command == "table":
            return table(flags.directory)
        config = make_config(
            flags.data, flags.system, flags.dropout, flags.seed, flags.epochs
        )
        config.data.path = flags.path
        print(run(config, flags.system, flags.out.absolute()))

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main())
