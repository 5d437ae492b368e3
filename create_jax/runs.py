"""Finished runs: found, read, and grouped into the systems that a report compares."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from create_jax import methods, metrics, protocol, ranks, settings
from create_jax.errors import InputError

# Settings that do not define a system.
NOT_A_SYSTEM = ("seed", "tune.", *settings.CHANGE_NO_NUMBER)


class System(NamedTuple):
    """Runs that differ in their seeds alone.

    label: the method, and where its settings differ from others in the table and are
    not the most common of the method in the report; or the name of its directory.
    varies: the label of the system that it is a variant of. section: its data set, and
    the same of its protocol. settings: the flat config.
    """

    label: str
    varies: str
    section: str
    dataset: str
    settings: dict
    results: list[dict]
    folders: list[Path]


def find_runs(places: list[str]) -> list[Path]:
    """The directories with a result.json, among `places` and up to two levels below."""
    found = []
    for place in map(Path, places):
        below = [place, *sorted([*place.glob("*"), *place.glob("*/*")])]
        runs = [folder for folder in below if (folder / "result.json").exists()]
        if not runs:
            raise InputError(
                f"{place}: found no result.json in it or up to two levels below; "
                "expected a finished run or a directory of them"
            )
        found += [folder for folder in runs if folder not in found]
    return found


class _Key(NamedTuple):
    """What the runs of a system share; protocol and settings as JSON. log: the start of
    the data's fingerprint."""

    dataset: str
    log: str
    protocol: str
    method: str
    settings: str


def load(folders: list[Path], by_directory: bool = False) -> list[System]:
    """Runs grouped by data, protocol, method and settings: data and protocols in the
    order they were given, simple methods first. Data of one name and other fingerprints
    are others. by_directory: systems are named after the directories of their runs."""
    groups, flats = {}, {}
    for folder in folders:
        result = read_result(folder)
        flat = _settings_of(folder)
        key = _Key(
            result["dataset"],
            result["data"].get("fingerprint", "")[:8],
            json.dumps(protocol.as_done(result["protocol"]), sort_keys=True),
            result["method"],
            json.dumps(flat, sort_keys=True),
        )
        groups.setdefault(key, []).append((result, folder))
        flats.setdefault(key, flat)
    systems = []
    for key, runs in groups.items():
        results, where = map(list, zip(*runs, strict=True))
        if len({result["seed"] for result in results}) < len(results):
            raise InputError(
                f"{where[0]} and others have the same seed and settings; give each "
                "run once"
            )
        label, varies = _label(key, flats), key.method
        if by_directory:
            label, varies = _directory(where, results)
        names = label, varies, _section(key, list(groups)), key.dataset
        systems.append(System(*names, flats[key], results, where))
    _refuse_same_names(systems, "settings" if by_directory else "directory")
    sections = list(dict.fromkeys(system.section for system in systems))
    order = [*methods.METHODS][::-1]

    def place(system):
        method = system.results[0]["method"]
        known = order.index(method) if method in order else len(order)
        return sections.index(system.section), known

    return sorted(systems, key=place)


def read_result(folder: Path) -> dict:
    """The result.json of a run; InputError where it is none."""
    parts = "dataset", "method", "seed", "protocol", "data", "test", "test_by_target"
    return ranks.read_json(folder / "result.json", parts)


def _settings_of(folder: Path) -> dict:
    """The flat settings of a run that define its system."""
    found = ranks.read_json(folder / "config.json", ("config",))
    flat = settings.of_run(found["config"])
    return {k: v for k, v in flat.items() if not settings.is_among(k, NOT_A_SYSTEM)}


def _label(key: _Key, flats: dict[_Key, dict]) -> str:
    own = flats[key]
    alike = {other: flats[other] for other in flats if other.method == key.method}
    beside = [flat for other, flat in alike.items() if other[:3] == key[:3]]
    differs = _apart(own, beside, list(alike.values()))
    # An old run may differ from what its method fixes now.
    fixed = methods.METHODS.get(key.method, methods.Method()).fixed.items()
    odd = [f"{k}={own[k]}" for k, v in fixed if own.get(k, v) != v]
    return ", ".join(dict.fromkeys([key.method, *differs, *odd]))


def _directory(folders: list[Path], results: list[dict]) -> tuple[str, str]:
    """(name, the name of what it varies) of a system: create@w=1 and create for the
    runs create@w=1/seed-0 and create@w=1-0."""
    found = set()
    for folder, result in zip(folders, results, strict=True):
        name = folder.absolute().name.removesuffix(f"-{result['seed']}")
        found.add(folder.absolute().parent.name if name == "seed" else name)
    if len(found) > 1:
        raise InputError(
            f"{folders[0]} and others have the same settings in directories of "
            f"different names, {', '.join(sorted(found))}; give one of them, or name "
            "systems by their settings"
        )
    (name,) = found
    return name, shorter(name)


def shorter(name: str) -> str:
    """The name of a directory without its last setting, where it has one."""
    return re.sub("[@,][^@,]*$", "", name)


def _refuse_same_names(systems: list[System], other: str) -> None:
    """Raises InputError where two systems of a section have one label."""
    names = Counter((system.section, system.label) for system in systems)
    (section, label), times = names.most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{section}: found {times} systems that are called {label}; give one of "
            f"them, or name them otherwise, with --names={other}"
        )


def _section(key: _Key, keys: list[_Key]) -> str:
    rules = protocol.spelled_out(json.loads(key.protocol))
    beside = [
        (other.log, protocol.spelled_out(json.loads(other.protocol)))
        for other in keys
        if other.dataset == key.dataset
    ]
    logs = {log for log, other in beside if _read_as(other) == _read_as(rules)}
    which = [f"data={key.log}"] if len(logs) > 1 else []
    every = [other for _, other in beside]
    return ", ".join([key.dataset, *which, *_apart(rules, every, every, gaps=False)])


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

    def text(name, value):
        short = settings.shown(value)
        alike = [one for one in others(name, every) if settings.shown(one) == short]
        return short if all(one == value for one in alike) else value

    return [
        f"{name}={text(name, value)}"
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


def common_targets(results: list[dict]) -> list[str]:
    """The target rules that all of some results have: each has those of its run."""
    first, *others = (result["test_by_target"] for result in results)
    return [rule for rule in first if all(rule in other for other in others)]


def common_metrics(results: list[dict], target: str) -> list[str]:
    """The metrics that all of some results have: `eval.metrics` may differ."""
    first, *others = (result["test_by_target"][target] for result in results)
    return [name for name in first if all(name in other for other in others)]


def targets_of(systems: list[System]) -> list[str]:
    """The target rules whose ranks all runs have: those with one target a query."""
    results = [result for system in systems for result in system.results]
    common = common_targets(results)
    return [rule for rule in ranks.targets(systems[0].folders[0]) if rule in common]


def per_query(folder: Path, target: str, names) -> tuple[np.ndarray, np.ndarray]:
    """(users [Q], metrics of each query [Q, M]) from the saved ranks of a run.

    Raises:
      InputError: a cut-off is above those that the run was tested at.
    """
    cuts, largest = {int(n.split("@")[1]) for n in names}, ranks.largest(folder)
    if max(cuts) > largest:
        raise InputError(
            f"{folder}: its ranks are kept up to {largest}, and @{max(cuts)} was asked "
            "for; train it with that among --config.eval.ks"
        )
    users, places = ranks.read(folder, target)
    at = {k: metrics.from_ranks(places, k) for k in cuts}
    return users, np.stack([at[int(n.split("@")[1])][n] for n in names], axis=1)
