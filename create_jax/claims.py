"""Differences between systems, with intervals and p-values."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from create_jax import bootstrap, ranks
from create_jax.errors import InputError
from create_jax.runs import System, by_section, per_query, targets_of


class Claim(NamedTuple):
    """A difference to the baseline, in percent points, over the same users.

    low, high: the 95% interval. relative: the difference in percent of the baseline,
    with its own interval. p: two-sided, of a difference of zero. holm: p
    corrected for all claims about the section and target.
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
    holm: float = 1.0

    def detectable(self, claims: int = 1) -> float:
        """The true difference that four of five such tests see at the 5% level, of so
        many claims at the strictest step of Holm's correction. Of one it is 2.8
        deviations, where the interval is 3.9 of them wide."""
        edge = stats.norm.ppf(1 - 0.025 / claims)
        deviation = (self.high - self.low) / (2 * stats.norm.ppf(0.975))
        return (edge + stats.norm.ppf(0.8)) * deviation


def make_claims(systems, baseline: str, names, resamples: int) -> list[Claim]:
    """Compares each system with the baseline of its section, and each variant with
    what it varies, for each target and metric that the section has."""
    claims = []
    for own in by_section(systems).values():
        pairs, has = _pairs(own, baseline), own[0].results[0]["test"]
        # Packed ranks end at the largest cut-off of their run.
        measured = [name for name in names if name in has]
        if pairs and measured:
            claims += _compare(pairs, measured, resamples)
    # Holm's correction counts the claims of one table. So no claim changes when other
    # data are added to the report.
    tables = [(claim.section, claim.target) for claim in claims]
    for table in dict.fromkeys(tables):
        places = [n for n, other in enumerate(tables) if other == table]
        corrected = bootstrap.holm([claims[place].p for place in places])
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


def _pairs(own: list[System], baseline: str) -> list[tuple[System, System]]:
    """(system, the system it is compared with) of a section. `baseline` is a label, or
    a method that has one system."""
    labels, baseline = [system.label for system in own], _baseline(own, baseline)
    return [
        (system, own[labels.index(other)])
        for system in own
        for other in dict.fromkeys((baseline, system.varies))
        if other != system.label and other in labels
    ]


def _compare(pairs, names, resamples: int) -> list[Claim]:
    """The claims of a section. All claims share the drawn users."""
    systems = list({id(system): system for pair in pairs for system in pair}.values())
    rng, claims = np.random.default_rng(0), []
    asked = targets_of(systems)
    parts = [_sums(systems, target, names) for target in asked]
    flat = [(sums.reshape(len(counts), -1), counts) for sums, counts in parts]
    n_runs = [len(system.folders) for system in systems]
    ends = np.cumsum(n_runs)
    for target, (sums, counts), drawn in zip(
        asked, parts, bootstrap.resample_users(flat, resamples, rng), strict=True
    ):
        drawn = drawn.reshape(resamples, sum(n_runs), len(names))
        bootstrapped, means = {}, {}
        for system, end, runs in zip(systems, ends, n_runs, strict=True):
            own = slice(end - runs, end)
            # A separate stream: no difference changes when other systems are added.
            names_of_runs = " ".join(map(ranks.name_of, system.folders))
            seeds = np.random.default_rng(list(names_of_runs.encode()))
            bootstrapped[id(system)] = bootstrap.resample_seeds(drawn[:, own], seeds)
            means[id(system)] = sums[:, own].sum(0).mean(0) / counts.sum()
        for system, base in pairs:
            ours, theirs = bootstrapped[id(system)], bootstrapped[id(base)]
            gaps, ratios = ours - theirs, 100 * (ours / np.maximum(theirs, 1e-12) - 1)
            for place, name in enumerate(names):
                mean, other = means[id(system)][place], means[id(base)][place]
                relative = 100 * (mean / max(other, 1e-12) - 1)
                labels = system.section, target, name, system.label, base.label
                bounds = bootstrap.interval(gaps[:, place], mean - other)
                if len(counts) == 1:  # one user is drawn again and again: no spread
                    bounds = *bounds[:2], 1.0
                around = np.percentile(ratios[:, place], [2.5, 97.5])
                found = mean - other, relative, *around, *bounds
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
