"""Differences between systems, with intervals and p-values."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from create_jax import paired
from create_jax.errors import InputError
from create_jax.runs import System, by_section, per_query, shorter, targets_of


class Claim(NamedTuple):
    """A difference to the baseline, in percent points, over the same users.

    low, high: the 95% interval. relative: the difference in percent of the baseline,
    with its own interval. p, deviation, freedom: as in `paired`. holm: p corrected for
    all claims about the section and target.
    """

    section: str
    target: str
    metric: str
    label: str
    baseline: str
    difference: float
    relative: float
    relative_low: float
    relative_high: float
    low: float
    high: float
    p: float
    deviation: float
    freedom: float
    holm: float = 1.0


def make_claims(systems, baselines: Sequence[str], names) -> list[Claim]:
    """Compares each system with the baselines of its section, and each variant with
    what it varies, for each target and metric that the section has."""
    claims = []
    for own in by_section(systems).values():
        pairs, has = _pairs(own, baselines), own[0].results[0]["test"]
        # Packed ranks end at the largest cut-off of their run.
        measured = [name for name in names if name in has]
        if pairs and measured:
            claims += _compare(pairs, measured)
    # Holm's correction counts the claims of one table. So no claim changes when other
    # data are added to the report.
    tables = [(claim.section, claim.target) for claim in claims]
    for table in dict.fromkeys(tables):
        places = [n for n, other in enumerate(tables) if other == table]
        corrected = paired.holm([claims[place].p for place in places])
        for place, p in zip(places, corrected, strict=True):
            claims[place] = claims[place]._replace(holm=p)
    return claims


def check_baseline(systems, baseline: str) -> None:
    """Raises InputError for a baseline that no section has."""
    if any(_baseline(own, baseline) for own in by_section(systems).values()):
        return
    found = ", ".join(dict.fromkeys(system.label for system in systems))
    raise InputError(
        f"--baseline={baseline}: no system has that label, and no section one system "
        f"of that method; expected one of: {found}"
    )


def _baseline(own: list[System], baseline: str) -> str:
    """The label of the baseline of a section, "" where it has none."""
    labels = [system.label for system in own]
    if baseline in labels:
        return baseline
    of = [one.label for one in own if one.results[0]["method"] == baseline]
    return of[0] if len(of) == 1 else ""


def _pairs(own: list[System], baselines) -> list[tuple[System, System]]:
    """(system, the system it is compared with) of a section. A baseline is a label, or
    a method that has one system."""
    labels, found = [system.label for system in own], {}
    baselines = [_baseline(own, baseline) for baseline in baselines]
    for system in own:
        varied = system.varies
        while varied not in labels and varied != shorter(varied):
            varied = shorter(varied)
        for other in dict.fromkeys((*baselines, varied)):
            twice = (other, system.label) in found  # the same claim from the other side
            if other != system.label and other in labels and not twice:
                found[system.label, other] = system, own[labels.index(other)]
    return list(found.values())


def _compare(pairs, names) -> list[Claim]:
    """The claims of a section."""
    systems = list({id(system): system for pair in pairs for system in pair}.values())
    ends = np.cumsum([len(system.folders) for system in systems])
    claims = []
    for target in targets_of(systems):
        sums, counts = _sums(systems, target, names)
        tables = {}
        for system, end in zip(systems, ends, strict=True):
            runs = end - len(system.folders) + np.argsort(_seeds(system))
            of = np.moveaxis(sums[:, runs], 2, 0)  # [M, N, S]
            tables[id(system)] = [paired.per_user(one, counts) for one in of]
        for system, base in pairs:
            same_seeds = sorted(_seeds(system)) == sorted(_seeds(base))
            for place, name in enumerate(names):
                both = tables[id(system)][place], tables[id(base)][place]
                found = paired.difference(*both, same_seeds)
                percent = paired.relative(*both, same_seeds)
                labels = system.section, target, name, system.label, base.label
                own = found.mean, *percent[:3], *found[1:]
                claims.append(Claim(*labels, *own))
    return claims


def _seeds(system: System) -> list[int]:
    return [result["seed"] for result in system.results]


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
