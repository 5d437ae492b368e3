"""Which protocol fits the paper's model-free rows: Random, PopRnd and SVD of Table 2.

python -m benchmarks.protocol beauty sports ml1m [--out=results/protocol]

Goes over a grid of what the paper leaves open: quantile, order inside a timestamp,
history, items unseen in training, candidates, target. These rows need no training of a
network, so a difference comes from the protocol. The distance of a cell to a row is the
mean over its six metrics of |ours - printed| / printed, where a distance within the
rounding of the print counts as none. Random and PopRnd are means over seeds; the rank
of SVD is chosen on validation, once a quantile. Files: --path=NAME=FILE, or where
`create_jax.fetch` puts them. Running it again continues.
"""

import argparse
import importlib
import itertools
import json
from pathlib import Path

import numpy as np

from create_jax import experiment, parallel, protocol, report
from create_jax.train import Run

SWITCHES = {
    "split.ties": ("file", "random"),
    "eval.history": ("full", "train"),
    "eval.cold_items": ("drop", "keep_as_miss"),
    "eval.candidates": ("train", "all"),
}
QUANTILES = (0.8, 0.9)
# Not `successive`: 128,000 queries a cell on ML-1M, and one target a user is certain
# (protocol.md, section 3, point 5).
TARGETS = ("last", "first", "random")
METHODS = {"random": "Random", "poprnd": "PopRnd", "svd": "SVD"}


def make_config(name: str, method: str, path: str, switches: dict):
    config = importlib.import_module(f"configs.{name}").get_config(method)
    config.data.path = path
    for key, value in switches.items():
        group, field = key.split(".")
        config[group][field] = value
    return config


def open_cell(config, logs: dict) -> experiment.Opened:
    """Data and split of a config without a directory; logs are read once."""
    if config.split.ties not in logs:
        logs[config.split.ties] = protocol.load(config)
    log = logs[config.split.ties]
    split = protocol.make_split(config, log)
    facts = protocol.describe(config, log, split)
    split = split._replace(test={name: split.test[name] for name in TARGETS})
    run = Run(config, None, parallel.make_mesh(), None)
    return experiment.Opened(run, split, facts)


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
                fitted, chosen = experiment.fit_svd(open_cell(config, logs))
                rank = chosen["best_metrics"]["rank"]
            lines = []
            for method in METHODS:
                config = make_config(name, method, path, switches)
                opened = open_cell(config, logs)
                tested = []
                for seed in range(1 if method == "svd" else seeds):
                    config.seed = seed
                    model = (fitted, chosen) if method == "svd" else (None, None)
                    tested.append(experiment.test(opened, *model)[0])
                for target in tested[0]["test_by_target"]:
                    each = [one["test_by_target"][target] for one in tested]
                    means = {k: float(np.mean([m[k] for m in each])) for k in each[0]}
                    lines.append(
                        dict(dataset=name, method=method, target=target)
                        | dict(switches=switches, metrics=means, rank=rank)
                        | dict(queries=tested[0]["data"]["test_queries"])
                    )
            found += lines
            save()
            print(f"{name}: {switches}", flush=True)


def distance(metrics: dict, printed: dict) -> float:
    """Of a row of ours (fractions) from the paper's (percent)."""
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


def markdown(found: list[dict], nearest: int = 8) -> str:
    """The nearest cells of each data set, and the mean distance of each choice."""
    ranked = rank_cells(found, report.paper_tables()["table 2"])
    parts = ["# Cells of the protocol beside the paper's model-free rows"]
    parts.append(
        "Written by `python -m benchmarks.protocol NAMES --path=NAME=FILE`: mean "
        "relative distance to the paper's Random, PopRnd and SVD rows; 0 = the same "
        "print."
    )
    for dataset in dict.fromkeys(one["dataset"] for one in found):
        own = [one for one in ranked if one[1]["dataset"] == dataset]
        names = ["target", *SWITCHES, "split.q_test"]
        rows = [
            [
                *(cell[n] for n in names),
                *(f"{rows[m]:.3f}" for m in METHODS),
                f"{d:.3f}",
            ]
            for d, cell, rows in own[:nearest]
        ]
        head = [*(n.split(".")[-1] for n in names), *METHODS.values(), "mean"]
        parts += [f"## {dataset}, nearest cells", report.markdown_table(head, rows)]
        rows = []
        for name in names:
            for value in dict.fromkeys(cell[name] for _, cell, _ in own):
                of_value = [one for one in own if one[1][name] == value]
                best = f"{of_value[0][0]:.3f}"
                mean = f"{np.mean([d for d, *_ in of_value]):.3f}"
                rows.append([name.split(".")[-1], value, best, mean])
        head = ["switch", "value", "nearest cell", "mean of cells"]
        parts += [f"### {dataset}, by switch", report.markdown_table(head, rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", choices=report.PAPER_DATA)
    parser.add_argument("--path", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/protocol"))
    flags = parser.parse_args()
    paths = dict(text.split("=", 1) for text in flags.path)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    file = flags.out.with_suffix(".json")
    found = json.loads(file.read_text()) if file.exists() else []

    def save():
        file.write_text(json.dumps(found, indent=1) + "\n")

    for name in flags.data:
        measure(name, paths.get(name, ""), flags.seeds, found, save)
    text = markdown(found)
    flags.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
