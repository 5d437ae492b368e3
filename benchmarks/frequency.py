"""Where a system gains on another: with rare targets or frequent ones, after short
histories or long ones.

python -m benchmarks.frequency results/tuned/beauty sasrec create --path=FILE

Groups the test queries of finished runs, DIR/SYSTEM/seed-N, by the training rows of
their target and by the length of their history, and prints what each system has more
than the one named before it. FILE is the log that they were trained on.
"""

import argparse
import itertools
import re
import sys
from pathlib import Path

import numpy as np

from create_jax import config_file, paired, protocol, report
from create_jax.data.splits import Split
from create_jax.errors import InputError, exit_code
from create_jax.runs import per_query, read_result

METRICS = ("ndcg@10", "recall@100")
TARGET = "last"  # one query for each user
FEWEST = 50  # queries of a group; smaller ones are left out
# What may differ in runs with the same test queries.
APART = ("ks", "validation", "q_val", "select_by", "select_target", "select_mean")
# The smallest value of each group. Targets without a training row are in none.
GROUPS = {
    "training rows of the target": (1, 6, 11, 21, 51),
    "items in the history": (1, 6, 11, 21, 51),
}


def counts(split: Split) -> dict[str, np.ndarray]:
    """What GROUPS are made by, of each test query: [Q] counts."""
    asked = split.test[TARGET]
    learned = np.bincount(split.refit.items, minlength=len(asked.candidates))
    return dict(
        zip(GROUPS, (learned[asked.targets], asked.end - asked.begin), strict=True)
    )


def members(values: np.ndarray, edges: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The queries [Q] bool of each group that has enough, by its name."""
    ends = [*(edge - 1 for edge in edges[1:]), None]
    found = {}
    for first, last in zip(edges, ends, strict=True):
        within = (values >= first) & (last is None or values <= last)
        name = f"{first} or more" if last is None else f"{first} to {last}"
        if within.sum() >= FEWEST:
            found[name] = within
    return found


def runs_of(folder: Path, system: str) -> list[Path]:
    """The finished runs of a system; InputError where there is none."""
    found = (folder / system).glob("seed-*/result.json")
    runs = [
        path.parent for path in found if re.fullmatch(r"seed-\d+", path.parent.name)
    ]
    if not runs:
        raise InputError(f"{folder / system}: found no finished run, seed-N, in it")
    return sorted(runs)


def asked(result: dict) -> tuple[str, dict]:
    """(the log, the rules) that make the test queries of a result."""
    rules = protocol.as_done(result["protocol"])
    return result["data"]["fingerprint"], {k: rules[k] for k in rules if k not in APART}


def read(folder: Path, system: str, first: tuple) -> dict[int, np.ndarray]:
    """Seed -> [Q, M] of METRICS, percent, in a system's runs.

    Raises:
      InputError: there is no such run, or its queries are not those `asked` first.
    """
    found = {}
    for run in runs_of(folder, system):
        if asked(read_result(run)) != first:
            raise InputError(
                f"{run}: its test queries are others than those of the first system on "
                "the log in --path; compare runs of one protocol, and give the file "
                "that they were trained on"
            )
        _, table = per_query(run, TARGET, METRICS)
        found[int(run.name.removeprefix("seed-"))] = 100 * table
    return found


def open_split(run: Path, path: str) -> tuple[Split, tuple]:
    """The split of a run, from the log in a file, and what is `asked` of it."""
    config = config_file.of_study(str(run / "config.json"), {"data.path": path})
    log = protocol.load(config)
    split = protocol.make_split(config, log)
    return split, asked(protocol.describe(config, log, split))


def tables(folder: Path, systems: list[str], path: str) -> str:
    """Markdown: a table for each of GROUPS, with each system less the one before."""
    split, first = open_split(runs_of(folder, systems[0])[0], path)
    of = {one: read(folder, one, first) for one in systems}
    values = counts(split)
    groups = [
        (what, name, own, at)
        for what, edges in GROUPS.items()
        for name, own in members(values[what], edges).items()
        for at in range(len(METRICS))
    ]
    pairs = [(b, a) for a, b in itertools.pairwise(systems)]
    found = [
        [difference(of[b], of[a], own, at) for b, a in pairs]
        for _, _, own, at in groups
    ]
    corrected = iter(paired.holm([one.p for row in found for one in row]))
    lines = {what: [] for what in GROUPS}
    for (what, name, own, at), row in zip(groups, found, strict=True):
        means = [np.mean([t[own, at] for t in of[a].values()]) for _, a in pairs]
        cells = [
            cell(one, mean, next(corrected))
            for one, mean in zip(row, means, strict=True)
        ]
        about = [name, f"{own.sum():,}", METRICS[at], f"{means[0]:.2f}"]
        lines[what].append([*about, *cells])
    short = {one: Path(one).name for one in systems}
    differences = [f"{short[b]} - {short[a]}" for b, a in pairs]
    names = ["queries", "metric", short[systems[0]], *differences]
    parts = [report.markdown_table([what, *names], own) for what, own in lines.items()]
    text = (
        f"Target {TARGET}, percent points: difference (95% interval), change "
        "in percent, p. Paired over users and, where systems have the same, over seeds "
        "(`create_jax/paired.py`); p corrected by Holm over both tables, bold below "
        f"0.05. Groups of fewer than {FEWEST} queries are left out."
    )
    return "\n\n".join([f"## {folder}: {', '.join(systems)}", text, *parts]) + "\n"


def difference(ours: dict, theirs: dict, queries: np.ndarray, metric: int):
    """Of one metric in one group; `ours` and `theirs` as from `read`."""
    both = (
        np.column_stack([table[queries, metric] for table in runs.values()])
        for runs in (ours, theirs)
    )
    return paired.difference(*both, same_seeds=ours.keys() == theirs.keys())


def cell(one: paired.Difference, mean: float, p: float) -> str:
    """One difference; `mean` is that of what is subtracted."""
    change = f"{100 * one.mean / mean:+.1f}%, " if mean else ""
    interval = report.interval(one.mean, one.low, one.high)
    text = f"{interval}, {change}p {report.p_value(p)}"
    return f"**{text}**" if p < 0.05 else text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of SYSTEM/seed-N")
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="two or more")
    parser.add_argument("--path", required=True, help="the log of the runs")
    flags = parser.parse_args(arguments)
    if len(flags.systems) < 2:
        parser.error(f"found one system, {flags.systems[0]}; expected two or more")
    given = flags.directory, flags.systems, flags.path
    return exit_code(lambda: print(tables(*given), end=""))


if __name__ == "__main__":
    sys.exit(main())
