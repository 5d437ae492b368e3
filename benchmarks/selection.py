"""Which validation metric chooses epochs and systems best, and what patience costs.

python -m benchmarks.selection run beauty create --seed=0 --path=FILE
python -m benchmarks.selection run beauty create --seed=0 --path=FILE --refit
python -m benchmarks.selection table runs/selection

`run` trains one system on rows up to the cut of the config alone; the true test rows
are gone before anything is made of the log. The last tenth of these rows plays the test
(split.q_test=0.9), the last tenth of the others validates. There is no patience. After
every joint epoch both parts are ranked by the model of then, with the last and the
successive targets of users, and measured by METRICS. Settings are those of the main
runs of results/ (results/run.sh). A run that was stopped goes on; a finished one is not
made again.

`table` prints, from all runs of a directory, how far the epochs that each rule chooses
are from the best ones, and draws the curves. What is chosen is tested by a run with
--refit, on validation's rows too, of the same seed; of a data set that has such runs
those without one are left out.
"""

import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks import each_epoch
from benchmarks.each_epoch import Curves
from create_jax import (
    build,
    config_file,
    curves,
    evaluate,
    metrics,
    protocol,
    report,
)
from create_jax.data.interactions import Interactions
from create_jax.data.splits import Holdout, known_items
from create_jax.data.streams import stream
from create_jax.errors import exit_code

RESULTS = Path(__file__).parents[1] / "results"
TARGETS = ("last", "successive")
METRICS = ("ndcg@10", "ndcg@100", "recall@10", "recall@100", *metrics.UNCUT)
# Of the targets that occur in training. The others lose scores with every step.
METRICS += ("warm_log_likelihood",)
AVERAGES = (1, 3, 5)
PATIENCES = (5, 10, 20)
# What a rule shall choose well, measured on the inner test.
AIMS = tuple(product(TARGETS, ("ndcg@10", "ndcg@100")))


# --- run ------------------------------------------------------------------------------


def make_config(data: str, method: str, seed: int, epochs: int):
    """The settings of the main run of results/ where there is one, else of the packaged
    config; under one protocol, without patience."""
    config = config_file.make(data, {}, method)
    if (best := RESULTS / data / f"{method}-tune/best.py").exists():
        config = config_file.make(str(best), {})
    if (data, method) == ("ml1m", "create"):  # there as long and like SASRec
        like = make_config(data, "sasrec", seed, epochs)
        config.optim.lr, config.seq.dropout = like.optim.lr, like.seq.dropout
    config.seed, config.compare = seed, ()
    config.split.update(validation="by_time", q_val=0.9)
    config.eval.update(cold_items="keep_as_miss", candidates="all", every=1)
    config.eval.update(ks=(10, 100), targets=TARGETS)
    config.eval.update(select_by="ndcg@10", select_mean=1)
    config.train.update(epochs=epochs, patience=epochs)
    return config


def compact(log: Interactions) -> Interactions:
    """A log of those users and items alone that have rows."""
    users, user_codes = np.unique(log.users, return_inverse=True)
    items, item_codes = np.unique(log.items, return_inverse=True)
    return log._replace(
        users=user_codes.astype(np.int32),
        items=(1 + item_codes).astype(np.int32),
        user_ids=log.user_ids.gather(users),
        item_ids=log.item_ids.gather(items - 1),
    )


def drawn(holdout: Holdout, queries: int, seed: int) -> Holdout:
    """At most so many of the queries, of one target each, drawn at random."""
    n = holdout.n_queries
    if n <= queries:
        return holdout
    kept = np.sort(stream("ask", seed).choice(n, queries, replace=False))
    return holdout._replace(
        users=holdout.users[kept],
        begin=holdout.begin[kept],
        end=holdout.end[kept],
        targets=holdout.targets[kept],
        offsets=np.arange(queries + 1),
    )


def run(config, out: Path, queries: int, refit: bool = False) -> Path:
    """Trains, and ranks after each joint epoch; returns the file that `table` reads.

    Args:
      config: of `make_config`; its split.q_test ends the rows that are used.
      out: the file's directory. Checkpoints and metrics.jsonl go to one below it.
      queries: the most that a holdout asks.
      refit: train on the rows of validation too; the inner test alone is ranked.
    """
    name = f"{config.data.name}-{config.method}" + "-refit" * refit
    file = out / f"{name}-{config.seed}.jsonl"
    if each_epoch.is_there(file, config):
        return file
    build.check(config)
    log = compact(protocol.make_split(config, protocol.load(config)).refit)
    config = config.copy_and_resolve_references()
    config.split.q_test = 0.9
    holdouts = {}
    for target in reversed(TARGETS):  # the first at last: it is the run's own
        config.eval.target = target
        split = protocol.make_split(config, log)
        for part, held in (("valid", split.valid), ("test", split.test[target])):
            holdouts[f"{part}/{target}"] = drawn(held, queries, config.split.seed)
    train, by = split.refit if refit else split.train, config.eval.select_by
    facts = protocol.describe(config, log, split) | {"refit": refit}
    known = known_items(train)
    if refit:
        holdouts = {key: x for key, x in holdouts.items() if key.startswith("test")}

    def measure(holdout: Holdout, ranking: evaluate.Ranking) -> dict[str, float]:
        warm = known[holdout.targets] & (ranking.ranks != evaluate.NOT_RANKED)
        likelihood = float(ranking.logs[warm].mean())
        return ranking.metrics | {"warm_log_likelihood": likelihood}

    return each_epoch.run(
        *(config, facts, train, holdouts, file),
        selects=f"{'test' if refit else 'valid'}/{TARGETS[0]}/{by}",  # it ends nothing
        measure=measure,
        uncut=metrics.UNCUT,
        lists=False,
    )


# --- rules ----------------------------------------------------------------------------


class Rule(NamedTuple):
    """Choose the epoch with the greatest mean of a validation metric over it and the
    epochs before it, `average` in all."""

    metric: str
    target: str
    average: int

    def of(self, study: Curves) -> np.ndarray:
        """[E] what is compared."""
        return averaged(
            study.curves[f"valid/{self.target}/{self.metric}"], self.average
        )


RULES = tuple(Rule(*one) for one in product(METRICS, TARGETS, AVERAGES))
USUAL = Rule("ndcg@10", "last", 1)  # the one that others are compared with
CHOSEN = Rule("log_reciprocal_rank", "last", 5)  # the default of configs


def averaged(values: np.ndarray, n: int) -> np.ndarray:
    """[E] means of each value and the n - 1 before it, or of as many as there are."""
    ends = range(1, len(values) + 1)
    return np.array([values[max(end - n, 0) : end].mean() for end in ends])


def chosen(values: np.ndarray, patience: int | None = None) -> tuple[int, int]:
    """(the place of the first greatest value, how many were waited for). With patience
    as in `train.after_epoch`: so many in a row without a greater one end it."""
    best = 0
    for place, value in enumerate(values):
        if value > values[best]:
            best = place
        elif patience is not None and place - best >= patience:
            return best, place + 1
    return best, len(values)


def regret(truth: np.ndarray, place: int) -> float:
    """What the choice of a place loses against the best one."""
    return float(truth.max() - truth[place])


def deviation(groups: list[list[float]]) -> float:
    """The deviation inside groups, pooled; nan where no group has two."""
    squares = sum(np.var(group) * len(group) for group in groups)
    free = sum(len(group) - 1 for group in groups)
    return float(np.sqrt(squares / free)) if free else float("nan")


def noise(values: np.ndarray, window: int = 7) -> tuple[float, float]:
    """(the deviation around the mean of an epoch, the three before it and the three
    after it, whose own share of the noise is made up for; the same as a share of how
    far these means go up and down); nan for a shorter curve."""
    if len(values) < window:
        return float("nan"), float("nan")
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    half = window // 2
    apart = values[half : len(values) - half] - smooth
    deviation = np.sqrt((apart**2).mean() * window / (window - 1))
    return float(deviation), float(deviation / np.ptp(smooth))


def same_order(first: list, second: list) -> tuple[int, int]:
    """In how many pairs, one of each list, the second wins or loses twice: once by
    each of two values; and the number of pairs.

    Args:
      first, second: (value, other value) of each run of a system.
    """
    pairs = list(product(first, second))
    alike = [np.sign(b[0] - a[0]) == np.sign(b[1] - a[1]) for a, b in pairs]
    return int(sum(alike)), len(pairs)


# --- table ----------------------------------------------------------------------------


def merged(runs: list[Curves]) -> list[Curves]:
    """The runs that validate, with the inner test of their refits, where there are any,
    and their own as `trained/...`: items of validation's rows alone are unseen there.
    Of a data set with refits those without one are left out, as not to be compared.
    """
    refits = {_key(one): one for one in runs if one.about.get("refit")}
    found, data = [], {data for data, *_ in refits}
    for one in runs:
        if one.about.get("refit") or (one.data in data and _key(one) not in refits):
            continue
        own, refit = dict(one.curves), refits.get(_key(one))
        if refit is not None:
            for name in [name for name in own if name.startswith("test/")]:
                own[name.replace("test/", "trained/", 1)] = own[name]
                own[name] = refit.curves[name]
        found.append(one._replace(curves=own))
    return found


def tables(studies: list[Curves]) -> str:
    """Markdown: a summary of all data, then the tables of each."""
    parts = [_about(studies), "## All data", _summary(studies)]
    parts.append("![regrets](regrets.png)")
    if len(studies) > 1:
        parts += ["### The default", _default(studies)]
    for data, own in each_epoch.by_data(studies).items():
        parts += [f"## {data}", f"![curves]({data}.png)"]
        parts += ["### Regret", _regrets(own)]
        parts += ["### Order of two systems", _orders(own)]
        parts += ["### Patience", _patiences(own)]
        parts += ["### Noise of validation", _noises(own)]
        if both := [one for one in own if _is_refitted(one)]:
            parts += ["### Refit", _refits(both)]
    return "\n\n".join(parts) + "\n"


def _about(studies: list[Curves]) -> str:
    rows = []
    for (data, method), own in _by_system(studies).items():
        about, seconds = own[0].about, np.mean([_seconds(one) for one in own])
        seeds = ", ".join(str(one.seed) for one in own)
        asked = ", ".join(f"{k} {n:,}" for k, n in about.get("queries", {}).items())
        commit = (about.get("git") or "")[:7]
        epochs = len(_truth(own[0], AIMS[0]))
        refits = ", ".join(str(one.seed) for one in own if _is_refitted(one))
        minutes = f"{seconds / 60:.0f}"
        rows.append([data, method, seeds, refits, epochs, asked, minutes, commit])
    head = ["data", "method", "seeds", "of these refitted", "joint epochs", "queries"]
    head += ["minutes", "commit"]
    text = (
        "Regret: what the epoch that a rule chooses on validation lacks of the best "
        "epoch, on the inner test; percent points, then as a share of the best. The "
        "inner test is of a run on the rows of validation too, after as many epochs, "
        "where there is one (refitted), else of the run itself, in which the items of "
        "these rows alone are unseen. After ±, the deviation over seeds. The best "
        "epoch is the best of one noisy curve: a part of every regret is that noise."
    )
    return text + "\n\n" + report.markdown_table(head, rows)


def _key(study: Curves) -> tuple:
    return study.data, study.method, study.seed


def _is_refitted(study: Curves) -> bool:
    return any(name.startswith("trained/") for name in study.curves)


def _seconds(study: Curves) -> float:
    return sum(study.about.get("seconds", {}).values())


def _by_system(studies: list[Curves]) -> dict[tuple, list[Curves]]:
    found = {}
    for study in sorted(studies, key=lambda one: (one.data, one.method, one.seed)):
        found.setdefault((study.data, study.method), []).append(study)
    return found


def _truth(study: Curves, aim: tuple[str, str]) -> np.ndarray:
    return study.curves["test/{}/{}".format(*aim)]


def _share_lost(study: Curves, place: int) -> float:
    """Regret as a share of the best, in percent, averaged over AIMS."""
    truths = [_truth(study, aim) for aim in AIMS]
    return float(np.mean([100 * regret(t, place) / t.max() for t in truths]))


def _losses(studies: list[Curves], rule: Rule, patience=None) -> np.ndarray:
    """[runs] what a rule loses, in percent."""
    places = [chosen(rule.of(one), patience)[0] for one in studies]
    return np.array([_share_lost(*one) for one in zip(studies, places, strict=True)])


def _default(studies: list[Curves]) -> str:
    """What the rule that was chosen lacks less than the usual one, run by run: of all
    data, and of those with three runs at least."""
    rows, parts = [], {"all": studies}
    for data, own in each_epoch.by_data(studies).items():
        parts |= {data: own} if 3 <= len(own) < len(studies) else {}
    for (data, own), patience in product(parts.items(), (*PATIENCES, None)):
        both = [_losses(own, rule, patience) for rule in (CHOSEN, USUAL)]
        less = both[0] - both[1]
        test = stats.ttest_1samp(less, 0)
        low, high = test.confidence_interval()
        cells = [f"{loss.mean():.2f}" for loss in both]
        cells.append(f"{less.mean():+.2f} ({low:+.2f} .. {high:+.2f})")
        rows.append([data, patience or "none", *cells, f"{test.pvalue:.3f}"])
    text = (
        f"The regret of the {CHOSEN.metric} of {CHOSEN.target}, as a mean of "
        f"{CHOSEN.average}, and of {USUAL.metric} of {USUAL.target}: the difference "
        "with an interval of 95% and p, of t over runs, as if no other rule had been "
        "looked at and the runs of one data set did not share its queries."
    )
    head = ["data", "patience", "chosen", "usual", "difference", "p"]
    return text + "\n\n" + report.markdown_table(head, rows)


def _last(study: Curves) -> int:
    return len(_truth(study, AIMS[0])) - 1


def _summary(studies: list[Curves]) -> str:
    rows, usual = [], _losses(studies, USUAL)
    for rule in RULES:
        places = [chosen(rule.of(study))[0] for study in studies]
        lost = _losses(studies, rule)
        groups = _by_system(studies)
        losses = dict(zip(map(id, studies), lost, strict=True))
        spread = deviation([[losses[id(s)] for s in own] for own in groups.values()])
        cells = [f"{np.mean(lost):.2f}{_spread(spread)}", f"{max(lost):.2f}"]
        less, wins = lost - usual, (lost < usual).sum()
        cells.append(f"{less.mean():+.2f} ({wins} of {(lost != usual).sum()})")
        cells += [f"{1 + np.mean(places):.0f}", *_right(studies, rule)]
        for patience in PATIENCES:
            found = [chosen(rule.of(study), patience) for study in studies]
            ended = [_share_lost(s, f[0]) for s, f in zip(studies, found, strict=True)]
            trained = np.mean([f[1] for f in found])
            cells.append(f"{np.mean(ended):.2f} ({trained:.0f})")
        rows.append((np.mean(lost), [*_named(rule), *cells]))
    rows.sort(key=lambda one: one[0])
    ends = [_share_lost(study, _last(study)) for study in studies]
    any_one = [
        np.mean([_share_lost(study, place) for place in range(_last(study) + 1)])
        for study in studies
    ]
    text = (
        "Regret is here the mean over "
        + ", ".join(f"{metric} of {target}" for target, metric in AIMS)
        + ", in percent of the best; `worst` is that of the worst run, `less` what it "
        f"is more than that of {' of '.join(USUAL[:2])} (lower in so many of the runs "
        "where they differ), `epoch` the mean one chosen. Order: of all pairs of a run "
        "of SASRec and one of CREATE, "
        "the share that the inner test at the chosen epochs (tested), or validation "
        "there (validated), orders as the inner test at the best epochs does. "
        "Patience: the regret with it, and after how many epochs runs ended on "
        f"average. The last epoch has a regret of {np.mean(ends):.2f}, one drawn at "
        f"random of {np.mean(any_one):.2f}."
    )
    head = ["metric", "target", "mean of", "regret, %", "worst", "less", "epoch"]
    head += ["order, tested", "order, validated"]
    head += [f"patience {n}" for n in PATIENCES]
    return text + "\n\n" + report.markdown_table(head, [row for _, row in rows])


def _named(rule: Rule) -> list:
    return [rule.metric, rule.target, rule.average]


def _spread(value: float, digits: int = 2) -> str:
    return "" if np.isnan(value) else f" ± {value:.{digits}f}"


def _regrets(studies: list[Curves]) -> str:
    rows, by_system = [], _by_system(studies)

    def line(name: list, place_of) -> None:
        cells = []
        for aim in AIMS:
            points = [
                [100 * regret(_truth(one, aim), place_of(one)) for one in own]
                for own in by_system.values()
            ]
            every = [value for group in points for value in group]
            best = np.mean([100 * _truth(one, aim).max() for one in studies])
            mean, spread = np.mean(every), _spread(deviation(points), 3)
            cells.append(f"{mean:.3f}{spread} ({100 * mean / best:.1f}%)")
        rows.append([*name, *cells])

    for rule in RULES:
        line(_named(rule), lambda study, rule=rule: chosen(rule.of(study))[0])
    line(["the last epoch", "", ""], _last)
    head = ["metric", "target", "mean of", *(f"{m}, {t}" for t, m in AIMS)]
    return report.markdown_table(head, rows)


def _pairs(studies: list[Curves], rule: Rule, aim) -> dict[str, tuple[int, int]]:
    """How often two systems of one data set come in the right order, by their inner
    test at the chosen epochs and by their validation there."""
    counts = {"tested": (0, 0), "validated": (0, 0)}
    for data in dict.fromkeys(study.data for study in studies):
        values = {}
        for study in (one for one in studies if one.data == data):
            place, truth = chosen(rule.of(study))[0], _truth(study, aim)
            both = truth.max(), truth[place], rule.of(study)[place]
            values.setdefault(study.method, []).append(both)
        if set(values) != {"sasrec", "create"}:
            continue
        for key, column in (("tested", 1), ("validated", 2)):
            sides = [
                [(one[0], one[column]) for one in values[method]]
                for method in ("sasrec", "create")
            ]
            found = same_order(*sides)
            counts[key] = tuple(map(sum, zip(counts[key], found, strict=True)))
    return counts


def _right(studies: list[Curves], rule: Rule) -> list[str]:
    """Shares of pairs in the right order, over AIMS."""
    found = [_pairs(studies, rule, aim) for aim in AIMS]
    cells = []
    for key in ("tested", "validated"):
        right, pairs = np.sum([one[key] for one in found], axis=0)
        cells.append(f"{100 * right / pairs:.0f}%" if pairs else "")
    return cells


def _orders(studies: list[Curves]) -> str:
    rows = []
    for rule in RULES:
        cells = []
        for aim in AIMS:
            found = _pairs(studies, rule, aim)
            cells += ["{} of {}".format(*found[key]) for key in ("tested", "validated")]
        rows.append([*_named(rule), *cells])
    columns = [f"{m}, {t}, {k}" for t, m in AIMS for k in ("tested", "validated")]
    return report.markdown_table(["metric", "target", "mean of", *columns], rows)


def _patiences(studies: list[Curves]) -> str:
    rows = []
    for rule in RULES:
        cells = []
        for patience in (*PATIENCES, None):
            found = [chosen(rule.of(study), patience) for study in studies]
            lost = [_share_lost(s, f[0]) for s, f in zip(studies, found, strict=True)]
            ended = [f[1] for f in found]
            cells.append(f"{np.mean(lost):.2f} ({min(ended)} to {max(ended)})")
        rows.append([*_named(rule), *cells])
    text = "Regret in percent as above (epochs after which the runs ended)."
    head = ["metric", "target", "mean of", *PATIENCES, "none"]
    return text + "\n\n" + report.markdown_table(head, rows)


def _noises(studies: list[Curves]) -> str:
    rows = []
    for metric in METRICS:
        cells = []
        for target in TARGETS:
            curves = [one.curves[f"valid/{target}/{metric}"] for one in studies]
            late = [curve[len(curve) // 3 :] for curve in curves]
            mean, share = np.mean([noise(curve) for curve in late], axis=0)
            cells.append(f"{mean:.5f} ({100 * share:.0f}%)")
        rows.append([metric, *cells])
    text = (
        "How far the metric of an epoch is from the mean of the seven epochs around "
        "it, in the last two thirds of the runs; and as a share of how far these means "
        "go up and down there. One that falls all the way has little noise, too."
    )
    return text + "\n\n" + report.markdown_table(["metric", *TARGETS], rows)


def _refits(studies: list[Curves]) -> str:
    """What `retrain.epochs` is worth: tested after the chosen epoch as trained, after
    as many of the refit, or a share of them."""
    rows = []
    for rule in RULES:
        lost = []
        for study in studies:
            place = chosen(rule.of(study))[0]
            share = study.about["config"]["split"]["q_val"]  # of the rows, trained on
            scaled = max(1, round(share * (place + 1))) - 1
            refits = [_truth(study, aim) for aim in AIMS]
            values = [(x[place], x[scaled]) for x in refits]
            own = [study.curves["trained/{}/{}".format(*aim)][place] for aim in AIMS]
            values = np.column_stack([own, values])
            lost.append(100 - 100 * (values.T / [x.max() for x in refits]).mean(1))
        spread = [_spread(x) for x in np.std(lost, axis=0, ddof=len(lost) > 1)]
        means = np.mean(lost, axis=0)
        cells = [f"{mean:.2f}{s}" for mean, s in zip(means, spread, strict=True)]
        rows.append((means[1], [*_named(rule), *cells]))
    rows.sort(key=lambda one: one[0])
    names = ", ".join(f"{x.method} {x.seed}" for x in studies)
    text = (
        f"Of {names}. What the model that is tested lacks of the best epoch of a run "
        "on the rows of training and validation, in percent, the mean as above (± over "
        "runs): without a refit, after as many joint epochs of one, after that share "
        "of them which the rows of training are (`retrain.epochs`; here the warm-up is "
        "of the same epochs each time)."
    )
    head = ["metric", "target", "mean of", "none", "best", "scaled"]
    return text + "\n\n" + report.markdown_table(head, [row for _, row in rows])


def draw(studies: list[Curves], picture: Path) -> None:
    """Every metric over epochs: validation drawn out, the inner test dashed, a colour a
    system, a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.1 * len(METRICS)), layout="constrained")
    panels = figure.subplots(len(METRICS), len(TARGETS), sharex=True)
    for row, metric in zip(panels, METRICS, strict=True):
        for panel, target in zip(row, TARGETS, strict=True):
            for number, own in enumerate(_by_system(studies).values()):
                for study in own:
                    for part, style in (("valid", "-"), ("test", "--")):
                        values = study.curves[f"{part}/{target}/{metric}"]
                        label = f"{study.method}, {part}" if study is own[0] else None
                        epochs = 1 + np.arange(len(values))
                        look = dict(color=f"C{number}", ls=style, lw=0.8, label=label)
                        panel.plot(epochs, values, **look)
            panel.set_title(f"{metric}, {target}", fontsize="small")
            panel.grid(alpha=0.3)
    panels[0][0].legend(frameon=False, fontsize="x-small")
    for panel in panels[-1]:
        panel.set_xlabel("joint epoch")
    each_epoch.save(figure, picture, dpi=70)


def draw_regrets(studies: list[Curves], picture: Path) -> None:
    """A line for each rule, the best first: a dot a run, and their mean."""
    from matplotlib.figure import Figure

    lost = {rule: _losses(studies, rule) for rule in RULES}
    order = sorted(RULES, key=lambda rule: -lost[rule].mean())
    figure = Figure(figsize=(8, 0.2 * len(order) + 1), layout="constrained")
    panel = figure.subplots()
    for number, (system, own) in enumerate(_by_system(studies).items()):
        mine = [place for place, one in enumerate(studies) if one in own]
        points = [(lost[r][n], y) for y, r in enumerate(order) for n in mine]
        label = f"{', '.join(system)}, a run"
        panel.scatter(*zip(*points, strict=True), s=9, color=f"C{number}", label=label)
    means = [lost[rule].mean() for rule in order]
    heights = range(len(order))
    panel.scatter(means, heights, s=60, marker="|", color="black", label="the mean")
    names = [" ".join(map(str, _named(rule)[:2])) for rule in order]
    means = [f", mean of {rule.average}" * (rule.average > 1) for rule in order]
    panel.set_yticks(heights, map("".join, zip(names, means, strict=True)))
    panel.tick_params(axis="y", labelsize="x-small")
    panel.set(xlabel="regret of the chosen epoch, percent of the best (log)")
    panel.set(xscale="symlog", xlim=0, ylim=(-1, len(order)))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize="x-small")
    each_epoch.save(figure, picture, dpi=80)


def table(directory: Path) -> None:
    """Prints the tables of a directory's runs, and draws the regrets of all and the
    curves of each data set."""
    studies = merged(each_epoch.read_all(directory, "selection"))
    print(tables(studies), end="")
    with curves.optional(directory / "regrets.png"):
        draw_regrets(studies, directory / "regrets.png")
    for data, own in each_epoch.by_data(studies).items():
        picture = directory / f"{data}.png"
        with curves.optional(picture):
            draw(own, picture)


def main(arguments: list[str] | None = None) -> int:
    flags = each_epoch.parse(
        *(arguments, "selection", __doc__.splitlines()[0], 60),
        **{
            "method": {"help": "sasrec or create"},
            "--refit": {"action": "store_true", "help": "on validation's rows too"},
            "--queries": {"type": int, "default": 10_000, "help": "most of a holdout"},
        },
    )

    def act():
        if flags.command == "table":
            return table(flags.directory)
        config = make_config(flags.data, flags.method, flags.seed, flags.epochs)
        config.data.path = flags.path
        print(run(config, flags.out.absolute(), flags.queries, flags.refit))

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main())
