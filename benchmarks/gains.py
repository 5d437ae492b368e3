"""What CREATE gains on SASRec in each study of results/, as a table and a picture.

python -m benchmarks.gains results

Reads the differences.csv that the reports wrote. Fills what stands between
`<!-- gains:table -->` and `<!-- /gains -->` in the directory's README, and draws
gains.png.
"""

import argparse
import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

from create_jax import report
from create_jax.errors import InputError, exit_code
from create_jax.files import whole, write_text

METRICS = {"ndcg@10": "NDCG@10", "recall@100": "Recall@100"}


class Row(NamedTuple):
    """A difference in a report. words: what it is, with a link to the report's page in
    brackets. folder: of the report. section to target: as in its differences.csv.
    paper: whether the paper has that claim."""

    words: str
    folder: str
    section: str
    label: str = "create"
    baseline: str = "sasrec"
    target: str = "last"
    paper: bool = True


OF_ML1M = "create, optim.lr=0.0008187, seq.dropout=0.113, train.epochs=49"
OF_ITS_STUDY = "create, optim.lr=0.0007837, seq.dropout=0.4602, train.epochs=13"
WHOLE = [
    Row("Beauty, [tuned anew]", "tuned", "beauty"),
    Row(
        *("Beauty, on LightGCN, tuned anew", "tuned", "beauty"),
        label="create@graph=lightgcn",
        paper=False,
    ),
    Row("Beauty, first study", "", "beauty"),
    Row(
        *("Beauty, first study, without warm-up", "", "beauty"),
        label="create, warmup.epochs=0",
        paper=False,
    ),
    Row("Sports, [tuned anew]", "tuned", "sports"),
    Row(
        "Sports, tuned anew, less SASRec [trained as long]",
        *("tuned/settings", "sports"),
        baseline="sasrec@settings=create,epochs=65",
    ),
    Row(
        "Sports, with ten epochs of warm-up, less the same",
        *("tuned/settings", "sports"),
        label="create@warmup=10",
        baseline="sasrec@settings=create,epochs=65",
    ),
    Row(
        "Sports, without warm-up, less the same",
        *("tuned/settings", "sports"),
        label="create@warmup=0",
        baseline="sasrec@settings=create,epochs=65",
        paper=False,
    ),
    Row("Sports, first study", "", "sports"),
    Row(
        *("Sports, first study, [both for 32 epochs]", "longer", "sports"),
        baseline="sasrec@epochs=32",
    ),
    Row("ML-1M, first study, with SASRec's settings", "", "ml1m", label=OF_ML1M),
    Row(
        *("ML-1M, first study, as CREATE's own study chose", "", "ml1m"),
        label=OF_ITS_STUDY,
        paper=False,
    ),
]
# Where histories end at the cut, and every row of the test is asked for in turn.
CUT = [
    Row(
        *(f"{data}, tuned anew", "tuned", f"{data.lower()}, history=train"),
        target="successive",
        paper=False,
    )
    for data in ("Beauty", "Sports")
]
CUT += [
    Row(
        *("Sports, first study, both for 32 epochs", "longer", "sports, history=train"),
        label="create@history=train",
        baseline="sasrec@epochs=32",
        target="successive",
        paper=False,
    )
]


def read(results: Path, rows: list[Row]) -> list[dict[str, dict]]:
    """Metric -> the line of differences.csv, of each row.

    Raises:
      InputError: a report has no such difference.
    """
    reports, found = {}, []
    for row in rows:
        path = results / row.folder / "differences.csv"
        if path not in reports:
            with path.open(newline="") as file:
                keys = "section", "label", "baseline", "target", "metric"
                lines = csv.DictReader(file)
                reports[path] = {tuple(x[key] for key in keys): x for x in lines}
        wanted = row.section, row.label, row.baseline, row.target
        missing = [name for name in METRICS if (*wanted, name) not in reports[path]]
        if missing:
            raise InputError(
                f"{path}: found no {missing[0]} of {row.label} - {row.baseline} on "
                f"{row.section}, target {row.target}; make that report anew"
            )
        found.append({name: reports[path][*wanted, name] for name in METRICS})
    return found


def printed_gain(row: Row, metric: str) -> float | None:
    """Of the paper's CREATE on its SASRec, percent."""
    if not row.paper:
        return None
    data = row.section.split(",")[0]
    create, sasrec = (report.paper_result(data, one) for one in ("create", "sasrec"))
    return 100 * create[metric][0] / sasrec[metric][0] - 100


def table(found: list[dict[str, dict]]) -> str:
    """Markdown of WHOLE."""
    head, rows = [""], []
    for words in METRICS.values():
        head += [words, "percent", "the paper", "p"]
    for row, of in zip(WHOLE, found, strict=True):
        cells = [row.words.replace("]", f"]({row.folder}/README.md)")]
        for metric, one in of.items():
            printed = printed_gain(row, metric)
            cells += [
                _interval(one, "difference", "", 2),
                _interval(one, "relative", "relative_", 1),
                "" if printed is None else f"{printed:.1f}",
                report.p_value(float(one["holm"])),
            ]
        rows.append(cells)
    return report.markdown_table(head, rows)


def _interval(one: dict, mean: str, prefix: str, digits: int) -> str:
    keys = mean, f"{prefix}low", f"{prefix}high"
    value, low, high = (float(one[key]) for key in keys)
    # A zero has no sign, but a bound is on one side of it.
    return f"{value:z.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def draw(found: list[dict[str, dict]], picture: Path) -> None:
    """Of WHOLE and CUT: gains in percent of SASRec with their intervals, and the
    paper's."""
    from matplotlib.figure import Figure

    rows = [*WHOLE, *CUT]
    places = [-n - (n >= len(WHOLE)) for n in range(len(rows))]  # a gap between both
    names = [re.sub(r"[\[\]]", "", row.words) for row in rows]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for panel, (metric, words) in zip(panels, METRICS.items(), strict=True):
        for row, of, place in zip(rows, found, places, strict=True):
            keys = "relative", "relative_low", "relative_high", "holm"
            mean, low, high, p = (float(of[metric][key]) for key in keys)
            panel.plot([low, high], [place, place], "C0", lw=1.5)
            face = "C0" if p < 0.05 else "white"
            panel.plot([mean], [place], "C0o", mfc=face)
            printed = printed_gain(row, metric)
            if printed is not None:
                panel.plot([printed], [place], "C1D", ms=5)
        panel.axvline(0, color="gray", lw=0.8)
        panel.set(xlabel=f"{words}, percent more than SASRec", xlim=(-30, 30))
        panel.set_yticks(
            [*places, -len(WHOLE)], [*names, "histories end at the cut, successive:"]
        )
        panel.grid(axis="x", alpha=0.3)
    panels[0].plot([], [], "C0o", label="ours, p < 0.05 after correction")
    panels[0].plot([], [], "C0o", mfc="white", label="ours, other")
    panels[0].plot([], [], "C0", lw=1.5, label="95% interval, before correction")
    panels[0].plot([], [], "C1D", ms=5, ls="", label="the paper's")
    figure.legend(
        *panels[0].get_legend_handles_labels(), ncols=4, loc="outside upper center"
    )
    with whole(picture) as file:
        figure.savefig(file, format="png", dpi=80)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="results")
    flags = parser.parse_args(arguments)

    def make():
        page = flags.directory / "README.md"
        found = read(flags.directory, [*WHOLE, *CUT])
        parts = {"table": table(found[: len(WHOLE)])}
        write_text(page, report.fill(page, parts, "gains"))
        draw(found, flags.directory / "gains.png")

    return exit_code(make)


if __name__ == "__main__":
    sys.exit(main())
