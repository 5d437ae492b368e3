"""Results as tables and pictures: python -m create_jax.report RUNS... [--out=DIR]

RUNS are directories of finished runs, or directories full of them, two levels deep.
Runs of one method and settings with several seeds become one line, mean and sample
deviation; the line of the paper follows. A table holds runs of one data set and one
protocol. Each line is compared with the baselines, and each variant with its method, by
a paired test over users and seeds. With --names=directory lines are named after
the directories of their runs, and create@graph=lightgcn,align=none is a variant of
create@graph=lightgcn, or of create where that is not there. p-values are corrected for
the number of comparisons in a table (Holm 1979).

Writes report.md, report.csv and differences.csv to DIR and, with the extra `plots`,
figures. --fill=FILE replaces the text of a Markdown file between `<!-- report:NAME -->`
and `<!-- /report -->` by that part of the report. NAME: summary, main,
differences, paper, seeds, targets, and index, where the runs are.
"""

import argparse
import functools
import json
import os
import re
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np

from create_jax import curves
from create_jax.claims import Claim, check_baseline, make_claims
from create_jax.errors import InputError, exit_code
from create_jax.files import csv_text, write_text
from create_jax.metrics import METRICS
from create_jax.paired import detectable
from create_jax.runs import (
    System,
    by_section,
    common_metrics,
    common_targets,
    find_runs,
    load,
)

BASELINE = "sasrec"  # of a report that names none, where there is one
COLUMNS = ("ndcg", "recall", "mrr", "coverage")
PAPER_DATA = {
    "beauty": "Amazon Beauty",
    "sports": "Amazon Sports",
    "clothing": "Amazon Clothing",
    "ml1m": "MovieLens-1M",
    "yambda": "Yambda-50M likes",
}
PAPER_SYSTEMS = {
    "sasrec": "SASRec",
    "bert4rec": "BERT4Rec",
    "mrgsrec": "MRGSRec",
    "svd": "SVD",
    "random": "Random",
    "poprnd": "PopRnd",
    "lightgcn": "LightGCN",
    "ultragcn": "UltraGCN",
    "create": "CREATE",
}
PAPER_ALIGNMENTS = {
    "none": "alignment=None",
    "infonce": "alignment=Contrastive",
    "barlow_twins": "alignment=Barlow",
}


# --- for the console ------------------------------------------------------------------


def show(results: list[dict]) -> None:
    """Prints the test metrics of runs in percent, a table for each protocol and log."""
    tables = {}
    for result in results:
        log = result["dataset"], result["data"]["fingerprint"]
        key = json.dumps([*log, result["protocol"]])
        tables.setdefault(key, []).append(result)
    for one in tables.values():
        print(table(one))


def table(results: list[dict]) -> str:
    """One line a method and target, below the protocol; metrics in percent. Several
    seeds give mean and sample deviation. Results of one protocol and log."""
    first = results[0]
    ks = first["protocol"]["ks"]
    usual = [f"{column}@{k}" for k in ks for column in COLUMNS]
    has = common_metrics(results, first["protocol"]["target"])
    names = [name for name in usual if name in has]
    names += [name for name in has if name not in usual]
    head = ["method", "target", *names]
    methods = list(dict.fromkeys(result["method"] for result in results))
    rows = [
        [method, target, *(percent(found, target, name) for name in names)]
        for target in common_targets(results)
        for method in methods
        for found in [[r for r in results if r["method"] == method]]
    ]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(["", about(first), *lines, ""])


def about(result: dict) -> str:
    """The data and protocol of a result in one line."""
    protocol, data = result["protocol"], result["data"]
    cut = f", q {protocol['q_test']}" if protocol["kind"] == "global_temporal" else ""
    return (
        f"{result['dataset']}, test, percent ({protocol['kind']}{cut}; "
        f"{data['test_queries']:,} queries with target {protocol['target']}; "
        f"ties {protocol['ties']}; unseen targets "
        f"{'dropped' if protocol['cold_items'] == 'drop' else 'kept'}; seen items "
        f"{'hidden' if protocol['filter_seen'] else 'ranked'})"
    )


def percent(results: list[dict], target: str, name: str) -> str:
    """The mean of a metric over runs in percent, ± the sample deviation of several."""
    values = 100 * np.array([r["test_by_target"][target][name] for r in results])
    spread = f" ±{values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


# --- documents ------------------------------------------------------------------------


@functools.cache
def paper_tables() -> dict:
    """Tables 2 to 5 of the paper, in percent: [mean, deviation or None]."""
    file = resources.files("create_jax").joinpath("paper_tables.json")
    return json.loads(file.read_text())


def paper_result(dataset: str, method: str) -> dict | None:
    """The paper's line of a method (Table 2): metric -> [mean, deviation or None]."""
    rows = paper_tables()["table 2"].get(PAPER_DATA.get(dataset), {})
    return rows.get(PAPER_SYSTEMS.get(method))


def paper_row(system: System) -> dict | None:
    """The paper's line of a system (Tables 2 and 4): metric -> [mean, deviation or
    None]."""
    method, own = system.results[0]["method"], system.settings
    row = paper_result(system.dataset, method)
    if method != "create":
        return row
    if own["seq.encoder"] != "sasrec" or own["loss.w_global"] == 0:
        return None
    graph = PAPER_SYSTEMS.get(own["graph.encoder"])
    kind = own["align.kind"] if own["loss.w_bt"] else "none"
    alignment = PAPER_ALIGNMENTS.get(kind)
    if (graph, alignment) == ("UltraGCN", "alignment=Barlow"):
        return row
    variants = paper_tables()["table 4"].get(PAPER_DATA.get(system.dataset), {})
    return variants.get(f"CREATE SASRec+{graph}, {alignment}")


def parts(systems, claims, name: str) -> dict[str, str]:
    """The report in parts, by name.

    `main`: tables of the target of each protocol. `differences`: the claims about that.
    `paper`: those that the paper's tables make too.
    `seeds`: the runs of each system. `targets`: tables and claims of the other targets.
    `summary`: one small table. `index`: the directories of the runs, not in report.md.
    """
    main, others = ["Percent; mean ± sample deviation over seeds."], []
    for section, own in by_section(systems).items():
        for rule in common_targets([r for system in own for r in system.results]):
            head = f"### {section}, target {rule}"
            if rule == _target(own[0]):
                first = about(own[0].results[0])
                main += [head, first, _table_of(own, rule, paper=True)]
            else:
                others += [head, _table_of(own, rule, paper=False)]
    found = {"summary": _summary(systems), "main": main, "differences": []}
    found["paper"] = _against_the_paper(systems, claims)
    found |= {"seeds": _seeds(systems, name), "targets": others}
    found |= {"index": _index(systems)}
    targets = {system.section: _target(system) for system in systems}
    for rule in dict.fromkeys(claim.target for claim in claims):
        of = [claim for claim in claims if claim.target == rule]
        if own := [claim for claim in of if targets[claim.section] == rule]:
            found["differences"] += _differences(own)
        if rest := [claim for claim in of if targets[claim.section] != rule]:
            others += [f"### Differences, target {rule}", *_differences(rest)]
    return {part: "\n\n".join(texts) for part, texts in found.items() if texts}


def _summary(systems: list[System]) -> list[str]:
    """SASRec, CREATE and CREATE without alignment, a row each with the paper's below
    it: two metrics of every data set under its most usual protocol, if its target is
    the first one's. Without CREATE nothing."""
    target, names = _shown(systems)
    head, lines = ["system"], {}
    for dataset, own in _usual(systems).items():
        if _target(own[0]) != target:
            continue
        head += [f"{dataset} {names[0]}", *names[1:]]
        for name, system in _sasrec_and_create(own).items():
            runs = system.results if system else []
            has = common_metrics(runs, target) if runs else []
            printed = (system and paper_row(system)) or {}
            own, paper = lines.setdefault(name, ([name], ["*as the paper prints it*"]))
            own += [percent(runs, target, n) if n in has else "" for n in names]
            paper += [_paper_cell(printed.get(name)) for name in names]
    rows = [row for pair in lines.values() for row in pair if any(row[1:])]
    if not any(row[0] == "CREATE" for row in rows):
        return []
    text = f"Percent, target {target}; mean ± sample deviation of seeds, or one seed."
    return [text, markdown_table(head, rows)]


def _shown(systems: list[System]) -> tuple[str, tuple[str, str]]:
    """The target and the two metrics of small tables."""
    ks = systems[0].results[0]["protocol"]["ks"]
    return _target(systems[0]), (f"ndcg@{min(ks)}", f"recall@{max(ks)}")


def _target(system: System) -> str:
    """The target of its protocol."""
    return system.results[0]["protocol"]["target"]


def _usual(systems: list[System]) -> dict[str, list[System]]:
    """The systems of each data set under its most usual protocol."""
    found = {}
    for dataset in dict.fromkeys(system.dataset for system in systems):
        sections = by_section([one for one in systems if one.dataset == dataset])
        found[dataset] = sections[min(sections, key=lambda name: name.count(","))]
    return found


def _sasrec_and_create(own: list[System]) -> dict[str, System | None]:
    """Of a section: SASRec; the CREATE that others vary, which has the fewest settings
    apart from them; and the one that lacks its alignment and is otherwise the same."""

    def apart(one, other):
        keys = one.settings.keys() | other.settings.keys()
        return {k for k in keys if one.settings.get(k) != other.settings.get(k)}

    def of(method):
        return [one for one in own if one.results[0]["method"] == method]

    every = of("create")
    aligned = [one for one in every if one.settings["align.kind"] != "none"]
    distances = [sum(len(apart(one, other)) for other in every) for one in aligned]
    create = aligned[distances.index(min(distances))] if aligned else None
    without = [one for one in every if one not in aligned]
    if create:
        without = [one for one in without if apart(create, one) == {"align.kind"}]
    found = of("sasrec")[:1], [create], without[:1]
    names = "SASRec", "CREATE", "CREATE without alignment"
    return {
        name: one[0] if one else None for name, one in zip(names, found, strict=True)
    }


def _index(systems: list[System]) -> list[str]:
    """The directories of each system's runs, below the one that all have in common."""
    every = [folder.absolute() for system in systems for folder in system.folders]
    top = Path(os.path.commonpath([folder.parent for folder in every]))
    rows = []
    for system in systems:
        places = {}
        for folder in system.folders:
            place = folder.absolute().parent.relative_to(top).as_posix()
            places.setdefault(place, []).append(folder.name)
        for place, runs in places.items():
            link = f"[{place}]({place})"
            rows.append([link, ", ".join(runs), system.section, system.label])
    return [markdown_table(["directory", "runs", "data and protocol", "system"], rows)]


def _table_of(systems: list[System], target: str, paper: bool) -> str:
    every = [result for system in systems for result in system.results]
    has = common_metrics(every, target)
    names = [name for name in has if not name.startswith("mrr")]
    rows, printed = [], []
    for system in systems:
        cells = [percent(system.results, target, name) for name in names]
        rows.append([system.label, len(system.results), *cells])
        row = paper_row(system) if paper else None
        if row and row not in printed:  # several variants share it
            printed.append(row)
            cells = [_paper_cell(row.get(name)) for name in names]
            rows.append(["*as the paper prints it*", "", *cells])
    return markdown_table(["system", "seeds", *names], rows)


def _seeds(systems: list[System], name: str) -> list[str]:
    """Epoch, validation and test of each run, for systems with several seeds."""
    rows = []
    for system in (system for system in systems if len(system.results) > 1):
        for result in sorted(system.results, key=lambda result: result["seed"]):
            values = [part.get(name) for part in (result["valid"], result["test"])]
            cells = ["" if v is None else f"{100 * v:.2f}" for v in values]
            run = system.section, system.label, result["seed"], result["epochs"]
            rows.append([*run, *cells])
    head = ["data", "system", "seed", "epochs", f"valid {name}", f"test {name}"]
    return [markdown_table(head, rows)] if rows else []


def _differences(claims: list[Claim]) -> list[str]:
    """One line a pair; bold where the corrected p is below 0.05."""
    names = list(dict.fromkeys(claim.metric for claim in claims))
    lines = {}
    for c in claims:
        cell = f"{interval(c.difference, c.low, c.high)}, p {p_value(c.holm)}"
        cell = f"**{cell}**" if c.holm < 0.05 else cell
        lines.setdefault((c.section, f"{c.label} - {c.baseline}"), {})[c.metric] = cell
    text = (
        f"Target {claims[0].target}, percent points: difference (95% interval), p. "
        "Paired over users and, where systems have the same, over seeds: both are "
        "samples (`create_jax/paired.py`). p two-sided, by Student's t, and corrected "
        "by Holm over the claims about the same data and protocol, bold below 0.05. "
        "Of one seed they leave out the chance of training."
    )
    rows = [
        [*pair, *(of.get(name, "") for name in names)] for pair, of in lines.items()
    ]
    return [text, markdown_table(["data", "difference", *names], rows)]


def _against_the_paper(systems: list[System], claims: list[Claim]) -> list[str]:
    """Differences that the paper's tables have too, a row each: two metrics of every
    data set under its most usual protocol, in percent of the baseline."""
    target, names = _shown(systems)
    usual = [system for own in _usual(systems).values() for system in own]
    known, done, rows = {(one.section, one.label): one for one in usual}, [], []
    families = Counter((claim.section, claim.target) for claim in claims)
    for claim in claims:
        pair = (claim.section, claim.label), (claim.section, claim.baseline)
        shown = claim.target == target and claim.metric in names
        if not shown or pair[0] not in known or _target(known[pair[0]]) != target:
            continue
        printed = [paper_row(known[one]) or {} for one in pair]
        theirs, other = (row.get(claim.metric) for row in printed)
        row = claim.section, claim.metric, *printed
        if printed[0] == printed[1] or row in done or not theirs or not other:
            continue
        done.append(row)  # several variants share it
        runs = [run["test_by_target"][target] for run in known[pair[1]].results]
        mean = np.mean([run[claim.metric] for run in runs])  # points by it are percent
        seen = [
            f"{detectable(claim.deviation, claim.freedom, n) / mean:.1f}%"
            for n in (1, families[claim.section, target])
        ]
        rows.append(
            [
                claim.section,
                f"{claim.label} - {claim.baseline}",
                claim.metric,
                f"{100 * theirs[0] / other[0] - 100:+.1f}%",
                f"{claim.relative:+.1f}%",
                f"{claim.relative_low:+.1f} .. {claim.relative_high:+.1f}",
                p_value(claim.holm),
                *seen,
            ]
        )
    if not rows:
        return []
    text = (
        "Percent of what is subtracted, its interval of 95%, and the p of the table of "
        "differences. Of variants that share the paper's line the first stands here. "
        "Seen from: four of five tests would see a true difference of that size, by "
        "an interval without zero; corrected: by a p that is below 0.05 as the first "
        "one that Holm looks at."
    )
    head = ["data", "difference", "metric", "the paper", "here", "interval", "p"]
    return [text, markdown_table([*head, "seen from", "corrected"], rows)]


TITLES = {
    "summary": "Summary",
    "main": "Results",
    "differences": "Differences",
    "paper": "The paper's differences",
    "seeds": "Seeds",
    "targets": "Other targets",
}


def markdown(found: dict[str, str]) -> str:
    """The parts with a title as one document."""
    own = [part for part in found if part in TITLES]
    return "\n\n".join(f"## {TITLES[part]}\n\n{found[part]}" for part in own) + "\n"


def fill(path: Path, found: dict[str, str], mark: str = "report") -> str:
    """A Markdown file with parts of the report between their marks, `<!-- report:NAME
    -->` and `<!-- /report -->`; mark: another word for `report`."""

    def replace(match):
        begin, part, end = match.groups()
        if part not in found:
            raise InputError(
                f"{path}: found the mark {mark}:{part}; expected one of "
                f"{', '.join(found)}"
            )
        line = "\r\n" if begin.endswith("\r\n") else "\n"
        return begin + f"\n{found[part]}\n\n".replace("\n", line) + end

    marks = rf"(<!-- {mark}:(\w+) -->\r?\n).*?(<!-- /{mark} -->)"
    try:
        page = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 ({error}); convert it") from None
    text, count = re.subn(marks, replace, page, flags=re.DOTALL)
    if not count:
        raise InputError(
            f"{path}: found no <!-- {mark}:NAME --> with a <!-- /{mark} -->; write "
            "them where the tables belong"
        )
    return text


def interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """A difference with its interval."""
    return f"{mean:+.{digits}f} ({low:+.{digits}f} .. {high:+.{digits}f})"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _paper_cell(value) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return f"*{mean:g}*" if deviation is None else f"*{mean:g} ±{deviation:g}*"


def markdown_table(head: list, rows: list[list]) -> str:
    """A head and rows of anything."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def comma_separated(systems: list[System]) -> str:
    """One line a section, system, target and metric."""
    head = ["dataset", "system", "target", "metric", "mean", "deviation", "seeds"]
    rows = [[*head, "paper"]]
    for system in systems:
        paper = paper_row(system) or {}
        for target in common_targets(system.results):
            for name in common_metrics(system.results, target):
                values = [r["test_by_target"][target][name] for r in system.results]
                spread = f"{np.std(values, ddof=1):.6f}" if len(values) > 1 else ""
                mean = f"{np.mean(values):.6f}"
                row = [system.section, system.label, target, name, mean, spread]
                main = target == _target(system)
                printed = paper[name][0] if main and name in paper else ""
                rows.append([*row, len(values), printed])
    return csv_text(rows)


def claims_as_csv(claims: list[Claim]) -> str:
    """One line a claim, percent points."""
    return csv_text([Claim._fields, *claims])


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        "python -m create_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--out", type=Path, help="directory for the files")
    parser.add_argument(
        "--fill", type=Path, action="append", default=[], help="Markdown with marks"
    )
    parser.add_argument(
        "--baseline", action="append", help="method or label, once or more"
    )
    parser.add_argument(
        "--names", choices=("settings", "directory"), default="settings"
    )
    parser.add_argument(
        "--metrics", help="of the differences; default: ndcg and recall of all"
    )
    flags = parser.parse_intermixed_args(arguments)
    return exit_code(lambda: make(flags))


def make(flags) -> None:
    """Writes what the flags of `main` ask for, and prints report.md."""
    systems = load(find_runs(flags.runs), flags.names == "directory")
    every = [name for system in systems for name in system.results[0]["test"]]
    known = [n for n in dict.fromkeys(every) if n.split("@")[0] in METRICS]
    usual = [name for name in known if name.startswith(("ndcg@", "recall@"))]
    names = flags.metrics.split(",") if flags.metrics else usual
    if not set(names) <= set(known):
        raise InputError(
            f"--metrics={flags.metrics}; expected some of {','.join(known)}"
        )
    for baseline in flags.baseline or ():
        check_baseline(systems, baseline)
    claims = make_claims(systems, flags.baseline or [BASELINE], names)
    found = parts(systems, claims, names[0])
    text = markdown(found)
    filled = [fill(path, found) for path in flags.fill]  # all of them, or none
    for path, page in zip(flags.fill, filled, strict=True):
        write_text(path, page)
    if flags.out:
        flags.out.mkdir(parents=True, exist_ok=True)
        write_text(flags.out / "report.md", text)
        write_text(flags.out / "report.csv", comma_separated(systems))
        write_text(flags.out / "differences.csv", claims_as_csv(claims))
        with curves.optional(flags.out):
            curves.draw_report(by_section(systems), flags.out, names[0])
    print(text)


if __name__ == "__main__":
    sys.exit(main())
