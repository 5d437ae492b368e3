"""Which protocol fits the paper's model-free rows: Random, PopRnd and SVD of Table 2.

python -m benchmarks.protocol beauty sports ml1m [--out=results/protocol]

Searches a grid of choices that the paper does not state: quantile, order inside a
timestamp, history, items unseen in training, candidates, target. These rows need no
training of a network, so a difference comes from the protocol. The distance of a cell
to a row is the mean over its six metrics of |ours - printed| / printed, where a
distance within the rounding of the print counts as none. Random and PopRnd are means
over seeds; the rank of SVD is chosen on validation, once a quantile. Files:
--path=NAME=FILE, or where `create_jax.fetch` puts them. Running it again continues.

    python -m benchmarks.protocol --run=DIR

Ranks the test queries of a finished run (SASRec, BERT4Rec, CREATE) under other targets,
histories and cold items, and compares with the paper's row of the method.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from create_jax import baselines, config_file, experiment, parallel, protocol, report
from create_jax.rundir import Opened, Run, program

SWITCHES = {
    "split.ties": ("file", "random"),
    "eval.history": ("full", "train"),
    "eval.cold_items": ("drop", "keep_as_miss"),
    "eval.candidates": ("train", "all"),
}
QUANTILES = (0.8, 0.9)
# Not `successive`: 128,000 queries a cell on ML-1M, and one target a user is certain
# (docs/protocol.md#which-protocol-the-paper-used).
TARGETS = ("last", "first", "random")
CELL = ("target", *SWITCHES, "split.q_test")
METHODS = {"random": "Random", "poprnd": "PopRnd", "svd": "SVD"}


def make_config(name: str, method: str, path: str, switches: dict):
    return config_file.make(name, {"data.path": path} | switches, method)


def open_cell(config, logs: dict) -> Opened:
    """Data and split of a config without a directory; logs are read once."""
    if config.split.ties not in logs:
        logs[config.split.ties] = protocol.load(config)
    log = logs[config.split.ties]
    split = protocol.make_split(config, log)
    facts = protocol.describe(config, log, split) | program()
    split = split._replace(test={name: split.test[name] for name in TARGETS})
    run = Run(config, None, parallel.make_mesh(), None)
    return Opened(run, split, facts, log)


def measure(name: str, path: str, seeds: int, found: list[dict], save) -> None:
    """Appends {dataset, method, switches, target, metrics} for every cell."""
    done = {(one["dataset"], json.dumps(one["switches"])) for one in found}
    logs = {}
    for quantile in QUANTILES:
        fitted = None
        for values in itertools.product(*SWITCHES.values()):
            switches = dict(zip(SWITCHES, values, strict=True))
            switches["split.q_test"] = quantile
            if (name, json.dumps(switches)) in done:
                continue
            if fitted is None:
                config = make_config(name, "svd", path, {"split.q_test": quantile})
                opened = open_cell(config, logs)
                fitted, chosen = baselines.fit(opened.run, opened.split)
                rank = chosen.best_metrics["rank"]
            lines = []
            for method in METHODS:
                config = make_config(name, method, path, switches)
                opened = open_cell(config, logs)
                tested = []
                for seed in range(1 if method == "svd" else seeds):
                    config.seed = seed
                    model = fitted, chosen
                    if method != "svd":
                        model = baselines.fit(opened.run, opened.split)
                    tested.append(experiment.test(opened, *model)[0])
                for target in tested[0]["test_by_target"]:
                    each = [one["test_by_target"][target] for one in tested]
                    means = {k: np.mean([m[k] for m in each]) for k in each[0]}
                    lines.append(
                        dict(dataset=name, method=method, target=target)
                        | dict(switches=switches, metrics=_rounded(means), rank=rank)
                        | dict(queries=tested[0]["data"]["test_queries"])
                    )
            found += lines
            save()
            print(f"{name}: {switches}", flush=True)


def measure_run(folder: Path, found: list[dict], save) -> None:
    """Appends the same for a trained run, under switches that need no other training.
    Candidates are left out: unseen items rank last, and few are in a test set.
    Earlier results of the run are replaced."""
    found[:] = [one for one in found if one["run"] != str(folder)]
    started = json.loads((folder / "config.json").read_text())["config"]
    _, fitted, chosen = experiment.reopen(ConfigDict(started), str(folder))
    ranked, logs = ("eval.history", "eval.cold_items"), {}
    for values in itertools.product(*(SWITCHES[name] for name in ranked)):
        config = ConfigDict(started)
        config.update_from_flattened_dict(dict(zip(ranked, values, strict=True)))
        result, _ = experiment.test(open_cell(config, logs), fitted, chosen)
        switches = {
            name: result["protocol"][name.split(".")[1]]
            for name in (*SWITCHES, "split.q_test")
        }
        print(switches, flush=True)
        for target in TARGETS:
            metrics = result["test_by_target"][target]
            found.append(
                dict(run=str(folder), dataset=result["dataset"], target=target)
                | dict(method=result["method"], switches=switches)
                | dict(metrics=_rounded(metrics))
                | dict(queries=result["data"]["test_queries"])
            )
    save()


def _rounded(metrics: dict) -> dict:
    return {key: float(f"{value:.8g}") for key, value in metrics.items()}


def distance(metrics: dict, printed: dict) -> float:
    """Distance of our row (fractions) from the paper's (percent)."""
    away = []
    for key, (mean, _) in printed.items():
        rounding = 0.0005 if 0 < mean < 0.01 else 0.005
        gap = max(0.0, abs(100 * metrics[key] - mean) - rounding)
        away.append(gap / max(mean, rounding))
    return float(np.mean(away))


def rank_cells(found: list[dict], paper: dict) -> list[tuple[float, dict, dict]]:
    """(mean distance, cell, distance of each row), the nearest first."""
    cells = {}
    for one in found:
        key = one["dataset"], one["target"], json.dumps(one["switches"])
        row = paper[report.PAPER_DATA[one["dataset"]]][METHODS[one["method"]]]
        cells.setdefault(key, {})[one["method"]] = distance(one["metrics"], row)
    ranked = []
    for (dataset, target, switches), rows in cells.items():
        cell = dict(dataset=dataset, target=target) | json.loads(switches)
        ranked.append((float(np.mean(list(rows.values()))), cell, rows))
    return sorted(ranked, key=lambda one: one[0])


def join_cells(ranked) -> list[tuple[float, dict, dict]]:
    """(mean over data sets, cell, distance of each data set), the nearest first."""
    cells = {}
    for away, cell, _ in ranked:
        switches = {key: value for key, value in cell.items() if key != "dataset"}
        cells.setdefault(json.dumps(switches), {})[cell["dataset"]] = away
    joint = [
        (float(np.mean(list(rows.values()))), json.loads(switches), rows)
        for switches, rows in cells.items()
    ]
    return sorted(joint, key=lambda one: one[0])


def markdown(grid: list[dict], trained: list[dict]) -> str:
    """The nearest cells of all data sets and of each, and how near each choice is."""
    ranked = rank_cells(grid, report.paper_tables()["table 2"])
    datasets = list(dict.fromkeys(one["dataset"] for one in grid))
    parts = ["# Cells of the protocol beside the paper's model-free rows"]
    parts.append(
        "Written by `python -m benchmarks.protocol NAMES --path=NAME=FILE`: mean "
        "relative distance to the paper's Random, PopRnd and SVD rows; 0 = the same "
        "print."
    )
    parts += _section("all", join_cells(ranked), {name: name for name in datasets})
    for dataset in datasets:
        own = [one for one in ranked if one[1]["dataset"] == dataset]
        parts += _section(dataset, own, METHODS)
    if trained:
        parts += _trained_together(trained)
    for run in dict.fromkeys(one["run"] for one in trained):
        parts += _trained(run, [one for one in trained if one["run"] == run])
    return "\n\n".join(parts) + "\n"


def _section(title: str, cells, columns: dict[str, str]) -> list[str]:
    rows = []
    for name in CELL:
        for value in dict.fromkeys(cell[name] for _, cell, _ in cells):
            means = [mean for mean, cell, _ in cells if cell[name] == value]
            row = [name.split(".")[-1], value, f"{means[0]:.3f}"]
            rows.append([*row, f"{np.mean(means):.3f}"])
    head = ["switch", "value", "nearest cell", "mean of cells"]
    by_switch = report.markdown_table(head, rows)
    return [
        *(f"## {title}, nearest cells", _cell_table(cells[:8], columns)),
        *(f"### {title}, by switch", by_switch),
    ]


def _cell_table(cells, columns: dict[str, str]) -> str:
    """A line a cell, with its distances and their mean."""
    rows = [
        [*(cell[n] for n in CELL), *(f"{away[c]:.3f}" for c in columns), f"{mean:.3f}"]
        for mean, cell, away in cells
    ]
    return report.markdown_table([*_short(CELL), *columns.values(), "mean"], rows)


def _printed_row(one: dict) -> dict:
    """The paper's row beside a cell of a trained run."""
    dataset = report.paper_tables()["table 2"][report.PAPER_DATA[one["dataset"]]]
    return dataset[report.PAPER_SYSTEMS[one["method"]]]


def _trained_together(trained: list[dict]) -> list[str]:
    """The cells by their mean over data sets, of which each is a mean over its runs."""
    cells = {}
    for one in trained:
        key = one["dataset"], one["target"], json.dumps(one["switches"])
        cells.setdefault(key, []).append(distance(one["metrics"], _printed_row(one)))
    ranked = [
        (float(np.mean(away)), dict(dataset=name, target=target) | json.loads(cell), {})
        for (name, target, cell), away in cells.items()
    ]
    there = {cell["dataset"] for _, cell, _ in ranked}
    columns = {name: name for name in report.PAPER_DATA if name in there}
    near = _cell_table(join_cells(ranked), columns)
    return ["## all trained runs, distance by data set", near]


def _trained(run: str, cells: list[dict]) -> list[str]:
    """The rows of one trained run, those like the paper's first."""
    dataset, name = cells[0]["dataset"], report.PAPER_SYSTEMS[cells[0]["method"]]
    printed = _printed_row(cells[0])
    rows = []
    for away, one in sorted(
        ((distance(one["metrics"], printed), one) for one in cells),
        key=lambda pair: pair[0],
    ):
        values = [f"{100 * one['metrics'][key]:.2f}" for key in printed]
        rows.append([one["target"], *one["switches"].values(), *values, f"{away:.3f}"])
    paper = ["*the paper*", *[""] * (len(CELL) - 1)]
    paper += [f"*{mean:g}*" for mean, _ in printed.values()] + [""]
    head = [*_short(CELL), *printed, "distance"]
    return [
        f"## {dataset}, {name} trained once, percent",
        f"`python -m benchmarks.protocol --run={run}`",
        report.markdown_table(head, [paper, *rows]),
    ]


def _short(names) -> list[str]:
    return [name.split(".")[-1] for name in names]


def _known(name: str) -> str:
    if name not in report.PAPER_DATA:
        names = ", ".join(report.PAPER_DATA)
        raise argparse.ArgumentTypeError(f"found {name!r}; expected one of {names}")
    return name


def _a_line_each(found: dict[str, list[dict]]) -> str:
    """JSON with a line for each cell."""
    parts = []
    for name, cells in found.items():
        lines = ",\n".join(json.dumps(cell, separators=(",", ":")) for cell in cells)
        parts.append(f"{json.dumps(name)}:[\n{lines}\n]")
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # Not `choices`: argparse would look for "no name at all" among them.
    parser.add_argument("data", nargs="*", type=_known, metavar="NAME")
    parser.add_argument("--run", action="append", type=Path, default=[], metavar="DIR")
    parser.add_argument("--path", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/protocol"))
    flags = parser.parse_args()
    paths = dict(text.split("=", 1) for text in flags.path)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    file = flags.out.with_suffix(".json")
    found = {"grid": [], "trained": []}
    if file.exists():
        found = json.loads(file.read_text())

    def save():
        file.write_text(_a_line_each(found))

    for name in flags.data:
        measure(name, paths.get(name, ""), flags.seeds, found["grid"], save)
    for folder in flags.run:
        measure_run(folder, found["trained"], save)
    text = markdown(**found)
    flags.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
