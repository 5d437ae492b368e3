"""Results as tables and pictures: python -m create_jax.report RUNS... [--out=DIR]

RUNS are directories of finished runs, or directories full of them. Runs of one method
and settings with several seeds become one line, mean and sample deviation; the paper's
line stands below it. A table holds runs of one data set and one protocol. Each line is
compared with the baseline, and variants of a method with what they vary, by a paired
bootstrap over users and seeds; p-values are corrected for the number of comparisons in
a table (Holm 1979).

Writes report.md, report.csv and differences.csv to DIR and, with the extra `plots`,
figures. With --fill=FILE, what stands in a Markdown file between `<!-- report:NAME -->`
and `<!-- /report -->` becomes that part of the report. NAME: summary, main,
differences, seeds, targets.
"""

import argparse
import csv
import functools
import io
import json
import re
import sys
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from create_jax import curves, metrics, protocol, settings
from create_jax.errors import InputError
from create_jax.writers import write_text

COLUMNS = ("ndcg", "recall", "mrr", "coverage")
# Of a config, what does not make another system.
NOT_A_SYSTEM = ("seed", "tune.", *settings.CHANGE_NO_NUMBER)
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
    """One line a method and target; metrics in percent, the protocol above them. Of
    several seeds, mean and sample deviation. Results of one protocol and log."""
    first = results[0]
    ks = first["protocol"]["ks"]
    names = [f"{column}@{k}" for k in ks for column in COLUMNS]
    names = [name for name in names if name in first["test"]]
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


def common_targets(results: list[dict]) -> list[str]:
    """The target rules that all of some results have: each has those of its run."""
    first, *others = (result["test_by_target"] for result in results)
    return [rule for rule in first if all(rule in other for other in others)]


def percent(results: list[dict], target: str, name: str) -> str:
    """The mean of a metric over runs in percent, ± the sample deviation of several."""
    values = 100 * np.array([r["test_by_target"][target][name] for r in results])
    spread = f" ±{values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


# --- runs -----------------------------------------------------------------------------


class System(NamedTuple):
    """Runs that differ in their seeds alone.

    label: the method, and where its settings differ from others in the table and are
    not the most common of the method in the report. section: its data set, and the same
    of its protocol. settings: the flat config.
    """

    label: str
    section: str
    dataset: str
    settings: dict
    results: list[dict]
    folders: list[Path]


def find_runs(places: list[str]) -> list[Path]:
    """The directories with a result.json at or right below the places."""
    found = []
    for place in map(Path, places):
        below = [place, *sorted(place.glob("*"))] if place.is_dir() else []
        runs = [folder for folder in below if (folder / "result.json").exists()]
        if not runs:
            raise InputError(
                f"{place}: found no result.json in it or right below it; expected a "
                "finished run or a directory of them"
            )
        found += [folder for folder in runs if folder not in found]
    return found


def load(folders: list[Path]) -> list[System]:
    """Runs grouped by data, protocol, method and settings: data and protocols in the
    order they were given, simple methods first. Data of one name and other fingerprints
    are others."""
    groups = {}
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        started = json.loads((folder / "config.json").read_text())
        flat = settings.of_run(started["config"])
        flat = {
            key: value
            for key, value in flat.items()
            if not settings.is_among(key, NOT_A_SYSTEM)
        }
        rules, own = (
            json.dumps(part, sort_keys=True)
            for part in (protocol.as_done(result["protocol"]), flat)
        )
        log = result["data"].get("fingerprint", "")[:8]
        key = result["dataset"], log, rules, result["method"], own
        groups.setdefault(key, []).append((result, flat, folder))
    logs, protocols = {}, {}
    for dataset, log, rules, *_ in groups:
        logs.setdefault((dataset, *_read_as(json.loads(rules))), set()).add(log)
        protocols.setdefault(dataset, []).append(json.loads(rules))
    systems = []
    for (dataset, log, rules, method, _), runs in groups.items():
        seeds = [result["seed"] for result, *_ in runs]
        if len(set(seeds)) < len(seeds):
            raise InputError(
                f"{runs[0][2]} and others have the same seed and settings; give each "
                "run once"
            )
        alike = {key: own[0][1] for key, own in groups.items() if key[3] == method}
        here = dataset, log, rules
        beside = [flat for key, flat in alike.items() if key[:3] == here]
        own = runs[0][1]
        differs = _apart(own, beside, list(alike.values()))
        # A run from before methods had to be what they are called.
        fixed = settings.FIXED.get(method, {}).items()
        odd = [f"{k}={own[k]}" for k, v in fixed if own.get(k, v) != v]
        label = ", ".join(dict.fromkeys([method, *differs, *odd]))
        every, done = protocols[dataset], json.loads(rules)
        several = len(logs[dataset, *_read_as(done)]) > 1
        which = [f"data={log}"] if several else []
        done = _apart(done, every, every, gaps=False)
        section = ", ".join([dataset, *which, *done])
        results, folders = [run[0] for run in runs], [run[2] for run in runs]
        systems.append(System(label, section, dataset, own, results, folders))
    sections = list(dict.fromkeys(system.section for system in systems))
    order = settings.METHODS[::-1]

    def place(system):
        method = system.results[0]["method"]
        return sections.index(system.section), order.index(method)

    return sorted(systems, key=place)


def _read_as(rules: dict) -> tuple:
    """How a protocol reads a file: read in two ways, it has two fingerprints."""
    seed = rules.get("seed") if rules["ties"] == "random" else None
    return rules["ties"], seed, rules.get("k_core"), rules.get("drop_repeats")


def _apart(own: dict, beside: list[dict], every: list[dict], gaps=True) -> list[str]:
    """`name=value` of what differs from others beside it, and is not what most of all
    have. gaps: whether those differ that have no such name."""

    def others(name, some):
        return [one.get(name) for one in some if gaps or name in one]

    def usual(name, value):
        counts = Counter(map(json.dumps, others(name, every))).most_common(2)
        alone = len(counts) == 1 or counts[0][1] > counts[1][1]
        return alone and counts[0][0] == json.dumps(value)

    return [
        f"{name}={_show(value)}"
        for name, value in own.items()
        if any(other != value for other in others(name, beside))
        and not usual(name, value)
    ]


def by_section(systems: list[System]) -> dict[str, list[System]]:
    """section -> its systems."""
    return {
        section: [system for system in systems if system.section == section]
        for section in dict.fromkeys(system.section for system in systems)
    }


def _show(value):
    return f"{value:.4g}" if isinstance(value, float) else value


def per_query(folder: Path, target: str, names) -> tuple[np.ndarray, np.ndarray]:
    """(users [Q], metrics of each query [Q, M]) from the saved ranks of a run."""
    with np.load(folder / "ranks.npz") as file:
        users, ranks = file[f"{target}_users"], file[target]
    at = {
        k: metrics.from_ranks(ranks, k) for k in {int(n.split("@")[1]) for n in names}
    }
    return users, np.stack([at[int(n.split("@")[1])][n] for n in names], axis=1)


# --- claims ---------------------------------------------------------------------------


class Claim(NamedTuple):
    """A difference to the baseline, in percent points, over the same users.

    low, high: the 95% interval. p: two-sided, of a difference of zero. holm: p
    corrected for all claims about the section and target.
    """

    section: str
    target: str
    metric: str
    label: str
    baseline: str
    difference: float
    relative: float
    low: float
    high: float
    p: float
    holm: float = 1.0


def resample_users(parts, resamples: int, rng) -> list[np.ndarray]:
    """Bootstrapped means [resamples, C] over queries for each part: users are drawn
    with all queries of theirs, the same ones for all parts and columns.

    Args:
      parts: (sums [N, C] of a user's metrics over queries, counts [N] of these).
    """
    n, means = len(parts[0][1]), [[] for _ in parts]
    block = max(1, 4_000_000 // n)  # draws at a time, so that memory stays small
    for start in range(0, resamples, block):
        rows = (rng.integers(0, n, n) for _ in range(min(block, resamples - start)))
        times = np.stack([np.bincount(row, minlength=n) for row in rows]).astype(float)
        for found, (sums, counts) in zip(means, parts, strict=True):
            found.append((times @ sums) / (times @ counts)[:, None])
    return [np.concatenate(found) for found in means]


def resample_seeds(means: np.ndarray, rng) -> np.ndarray:
    """[B, M] means over seeds of [B, S, M]: of S seeds S - 1 are drawn, which makes the
    variance that of a mean of S (Rao and Wu 1988). A single run stands for itself."""
    resamples, seeds, _ = means.shape
    drawn = rng.integers(0, seeds, (resamples, max(1, seeds - 1), 1))
    return np.take_along_axis(means, drawn, axis=1).mean(axis=1)


def interval(gaps: np.ndarray, difference: float) -> tuple[float, float, float]:
    """(low, high, p) of bootstrapped differences [B] and the one observed.

    The interval is of percentiles. p is of a normal with the bootstrap's deviation: a
    share of resamples knows nothing below 1 / B, where Holm's correction asks.
    """
    low, high = np.percentile(gaps, [2.5, 97.5])
    deviation = gaps.std(ddof=1)
    if deviation == 0:
        return low, high, float(difference == 0)
    return low, high, 2 * stats.norm.sf(abs(difference) / deviation)


def holm(values: list[float]) -> list[float]:
    """p-values corrected step by step (Holm 1979), in the order given."""
    corrected, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = largest
    return corrected


def make_claims(systems, baseline: str, names, resamples: int) -> list[Claim]:
    """Every system against the baseline of its section, and a variant of a method
    against the one that it varies, for each target and metric."""
    claims = []
    for own in by_section(systems).values():
        pairs = _pairs(own, baseline)
        if pairs:
            claims += _compare(pairs, names, resamples)
    # A family is a table: no claim changes when other data are added to the report.
    tables = [(claim.section, claim.target) for claim in claims]
    for table in dict.fromkeys(tables):
        places = [n for n, other in enumerate(tables) if other == table]
        corrected = holm([claims[place].p for place in places])
        for place, p in zip(places, corrected, strict=True):
            claims[place] = claims[place]._replace(holm=p)
    return claims


def _pairs(own: list[System], baseline: str) -> list[tuple[System, System]]:
    """(system, what it is compared with) of a section. The baseline is a label, or else
    the one system of a method."""
    methods = [system.results[0]["method"] for system in own]
    labels = [system.label for system in own]
    if baseline not in labels and methods.count(baseline) == 1:
        baseline = labels[methods.index(baseline)]
    pairs = []
    for label, method in zip(labels, methods, strict=True):
        for other in dict.fromkeys((baseline, method)):
            if other != label and other in labels:
                pairs.append((own[labels.index(label)], own[labels.index(other)]))
    return pairs


def _compare(pairs, names, resamples: int) -> list[Claim]:
    """The claims of a section, all from the same drawn users."""
    systems = list({id(system): system for pair in pairs for system in pair}.values())
    rng, claims = np.random.default_rng(0), []
    results = [result for system in systems for result in system.results]
    with np.load(systems[0].folders[0] / "ranks.npz") as file:
        # Not `all`, which has several targets a query.
        asked = [rule for rule in file if rule in common_targets(results)]
    parts = [_sums(systems, target, names) for target in asked]
    flat = [(sums.reshape(len(counts), -1), counts) for sums, counts in parts]
    n_runs = [len(system.folders) for system in systems]
    ends = np.cumsum(n_runs)
    for target, (sums, counts), drawn in zip(
        asked, parts, resample_users(flat, resamples, rng), strict=True
    ):
        drawn = drawn.reshape(resamples, sum(n_runs), len(names))
        bootstrapped, means = {}, {}
        for system, end, runs in zip(systems, ends, n_runs, strict=True):
            own = slice(end - runs, end)
            # A stream of its own: no difference changes when other systems are added.
            names_of_runs = " ".join(folder.name for folder in system.folders)
            seeds = np.random.default_rng(list(names_of_runs.encode()))
            bootstrapped[id(system)] = resample_seeds(drawn[:, own], seeds)
            means[id(system)] = sums[:, own].sum(0).mean(0) / counts.sum()
        for system, base in pairs:
            gaps = bootstrapped[id(system)] - bootstrapped[id(base)]
            for place, name in enumerate(names):
                mean, other = means[id(system)][place], means[id(base)][place]
                relative = 100 * (mean / max(other, 1e-12) - 1)
                labels = system.section, target, name, system.label, base.label
                bounds = interval(gaps[:, place], mean - other)
                found = mean - other, relative, *bounds
                claims.append(Claim(*labels, *found))
    return claims


def _sums(systems: list[System], target: str, names) -> tuple[np.ndarray, np.ndarray]:
    """(sums [N, R, M] of M metrics over the queries of N users in the R runs of all
    systems, in percent; counts [N] of these queries)."""
    sums, asked = [], None
    for folder in (folder for system in systems for folder in system.folders):
        users, values = per_query(folder, target, names)
        asked = users if asked is None else asked
        if not np.array_equal(users, asked):
            raise InputError(
                f"{folder} and {systems[0].folders[0]} were tested on different users; "
                "compare runs of one protocol"
            )
        _, owner = np.unique(users, return_inverse=True)
        sums.append([np.bincount(owner, 100 * column) for column in values.T])
    return np.transpose(sums, (2, 0, 1)), np.bincount(owner)


# --- documents ------------------------------------------------------------------------


@functools.cache
def paper_tables() -> dict:
    """Tables 2 to 5 of the paper, in percent: [mean, deviation or None]."""
    file = resources.files("create_jax").joinpath("paper_tables.json")
    return json.loads(file.read_text())


def paper_row(system: System) -> dict | None:
    """The paper's line of a system (Tables 2 and 4): metric -> [mean, deviation or
    None]."""
    method, own = system.results[0]["method"], system.settings
    data, name = PAPER_DATA.get(system.dataset), PAPER_SYSTEMS.get(method)
    row = paper_tables()["table 2"].get(data, {}).get(name)
    if method != "create":
        return row
    if own["seq.encoder"] != "sasrec" or own["loss.w_global"] == 0:
        return None
    graph = PAPER_SYSTEMS.get(own["graph.encoder"])
    alignment = PAPER_ALIGNMENTS.get(own["align.kind"])
    if (graph, alignment) == ("UltraGCN", "alignment=Barlow"):
        return row
    variants = paper_tables()["table 4"].get(data, {})
    return variants.get(f"CREATE SASRec+{graph}, {alignment}")


def parts(systems, claims, name: str) -> dict[str, str]:
    """The report in parts: `main`, the tables of the protocols' own target,
    `differences`, the claims about it, `seeds`, the runs of each system, `targets`,
    tables and claims of the other targets, and `summary`, the one small table."""
    main, others = ["Percent; mean ± sample deviation over seeds."], []
    for section, own in by_section(systems).items():
        first = own[0].results[0]
        for rule in common_targets([r for system in own for r in system.results]):
            head = f"### {section}, target {rule}"
            if rule == first["protocol"]["target"]:
                main += [head, about(first), _table_of(own, rule, paper=True)]
            else:
                others += [head, _table_of(own, rule, paper=False)]
    found = {"summary": _summary(systems), "main": main, "differences": []}
    found |= {"seeds": _seeds(systems, name), "targets": others}
    own = systems[0].results[0]["protocol"]["target"]
    for rule in dict.fromkeys(claim.target for claim in claims):
        texts = _differences([c for c in claims if c.target == rule])
        if rule == own:
            found["differences"] = texts
        else:
            others += [f"### Differences, target {rule}", *texts]
    return {part: "\n\n".join(texts) for part, texts in found.items() if texts}


def _summary(systems: list[System]) -> list[str]:
    """SASRec, CREATE and CREATE without alignment, a row each with the paper's below
    it: two metrics of every data set under its most usual protocol. Without CREATE
    nothing."""
    rules = systems[0].results[0]["protocol"]
    target, ks = rules["target"], rules["ks"]
    names = f"ndcg@{min(ks)}", f"recall@{max(ks)}"
    head, lines = ["system"], {}
    for dataset in dict.fromkeys(system.dataset for system in systems):
        sections = by_section([one for one in systems if one.dataset == dataset])
        usual = min(sections, key=lambda section: section.count(","))
        head += [f"{dataset} {names[0]}", *names[1:]]
        for name, system in _sasrec_and_create(sections[usual]).items():
            runs = system.results if system else []
            printed = (system and paper_row(system)) or {}
            own, paper = lines.setdefault(name, ([name], ["*as the paper prints it*"]))
            own += [percent(runs, target, name) if runs else "" for name in names]
            paper += [_paper_cell(printed.get(name)) for name in names]
    rows = [row for pair in lines.values() for row in pair if any(row[1:])]
    if not any(row[0] == "CREATE" for row in rows):
        return []
    text = f"Percent, target {target}; mean ± sample deviation of seeds, or one seed."
    return [text, markdown_table(head, rows)]


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


def _table_of(systems: list[System], target: str, paper: bool) -> str:
    first = systems[0].results[0]["test_by_target"][target]
    names = [name for name in first if not name.startswith("mrr")]
    rows, printed = [], []
    for system in systems:
        cells = [percent(system.results, target, name) for name in names]
        rows.append([system.label, len(system.results), *cells])
        row = paper_row(system) if paper else None
        if row and row not in printed:  # once, of several variants
            printed.append(row)
            cells = [_paper_cell(row.get(name)) for name in names]
            rows.append(["*as the paper prints it*", "", *cells])
    return markdown_table(["system", "seeds", *names], rows)


def _seeds(systems: list[System], name: str) -> list[str]:
    """What validation chose, and how it tested, where there are several seeds."""
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
        p = f"{c.holm:.3f}" if c.holm >= 0.001 else "<0.001"
        cell = f"{c.difference:+.2f} ({c.low:+.2f} .. {c.high:+.2f}), p {p}"
        cell = f"**{cell}**" if c.holm < 0.05 else cell
        lines.setdefault((c.section, f"{c.label} - {c.baseline}"), []).append(cell)
    text = (
        f"Target {claims[0].target}, percent points: difference (95% interval), p. "
        "Paired bootstrap over users and, of several, over seeds; p two-sided, of a "
        "normal with its deviation, and corrected by Holm over the claims about the "
        "same data and protocol, bold below 0.05."
    )
    rows = [[*pair, *cells] for pair, cells in lines.items()]
    return [text, markdown_table(["data", "difference", *names], rows)]


TITLES = {
    "summary": "Summary",
    "main": "Results",
    "differences": "Differences",
    "seeds": "Seeds",
    "targets": "Other targets",
}


def markdown(found: dict[str, str]) -> str:
    """The parts as one document."""
    return "\n\n".join(f"## {TITLES[part]}\n\n{found[part]}" for part in found) + "\n"


def fill(path: Path, found: dict[str, str]) -> str:
    """A Markdown file with parts of the report between their marks."""

    def replace(match):
        begin, part, end = match.groups()
        if part not in found:
            raise InputError(
                f"{path}: found the mark report:{part}; expected one of "
                f"{', '.join(found)}"
            )
        return f"{begin}\n{found[part]}\n\n{end}"

    marks = r"(<!-- report:(\w+) -->\n).*?(<!-- /report -->)"
    text, count = re.subn(marks, replace, path.read_text(), flags=re.DOTALL)
    if not count:
        raise InputError(
            f"{path}: found no <!-- report:NAME --> with a <!-- /report -->; write "
            "them where the tables belong"
        )
    return text


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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("dataset", "system", "target", "metric", "mean", "deviation", "seeds")
    writer.writerow([*head, "paper"])
    for system in systems:
        paper = paper_row(system) or {}
        first = system.results[0]
        for target in common_targets(system.results):
            for name in first["test_by_target"][target]:
                values = [r["test_by_target"][target][name] for r in system.results]
                spread = f"{np.std(values, ddof=1):.6f}" if len(values) > 1 else ""
                mean = f"{np.mean(values):.6f}"
                row = [system.section, system.label, target, name, mean, spread]
                main = target == first["protocol"]["target"]
                printed = paper[name][0] if main and name in paper else ""
                writer.writerow([*row, len(values), printed])
    return text.getvalue()


def claims_as_csv(claims: list[Claim]) -> str:
    """One line a claim, percent points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Claim._fields)
    for claim in claims:
        writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in claim)
    return text.getvalue()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--out", type=Path, help="directory for the files")
    parser.add_argument(
        "--fill", type=Path, action="append", default=[], help="Markdown with marks"
    )
    parser.add_argument("--baseline", default="sasrec", help="method or label")
    parser.add_argument("--metrics", default="ndcg@10,recall@10,ndcg@100,recall@100")
    parser.add_argument("--resamples", type=int, default=10_000)
    flags = parser.parse_intermixed_args(arguments)
    try:
        systems = load(find_runs(flags.runs))
        names = flags.metrics.split(",")
        known = [n for n in systems[0].results[0]["test"] if "coverage" not in n]
        if not set(names) <= set(known):
            raise InputError(
                f"--metrics={flags.metrics}; expected some of {','.join(known)}"
            )
        claims = make_claims(systems, flags.baseline, names, flags.resamples)
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
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
