"""The training curves of a run as a picture; needs the extra `plots`."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

from create_jax.files import whole


@contextmanager
def optional(what: Path):
    """Context for drawing: any error of a picture becomes a warning, so the result is
    kept."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"warning: {what}: could not be drawn ({reason})", file=sys.stderr)


def draw(metrics: Path, picture: Path, names: list[str]) -> bool:
    """Draws loss and validation metrics over epochs, a line a stage; warm-up is shaded.

    Args:
      metrics: the run's metrics.jsonl. picture: the PNG to write.
      names: of the validation metrics.

    Returns:
      False where matplotlib is not installed or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not metrics.exists():
        return False
    lines = [json.loads(text) for text in metrics.read_text().splitlines()]
    keys = ["loss", *(f"valid/{name}" for name in dict.fromkeys(names))]
    figure = Figure(figsize=(4.5 * len(keys), 3.2), layout="constrained")
    for panel, key in zip(figure.subplots(1, len(keys)), keys, strict=True):
        for stage in dict.fromkeys(line["stage"] for line in lines):
            points = [line for line in lines if line["stage"] == stage and key in line]
            if points:
                epochs = [line["epoch"] for line in points]
                panel.plot(epochs, [line[key] for line in points], label=stage)
        warmup = max((x["epoch"] for x in lines if x["phase"] == "warmup"), default=0)
        if warmup:
            panel.axvspan(0, warmup, alpha=0.1, color="gray", lw=0)
        panel.set(xlabel="epoch", ylabel=key)
        panel.grid(alpha=0.3)
        panel.legend(*panel.get_legend_handles_labels())
    with whole(picture) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


# Settings whose effect the paper draws: figures 3, 4 and 5.
STUDIED = {
    "graph.last_frac": "share of each user's rows in the graph",
    "graph.last_n": "last rows of each user in the graph",
    "warmup.epochs": "epochs of warm-up",
    "loss.w_bt": "weight of the alignment",
}


def draw_report(sections: dict, out: Path, name: str) -> list[Path]:
    """Pictures of a report: validation over epochs (figure 2 of the paper) and, where
    systems differ in one studied setting alone, the test metric against it.

    Args:
      sections: of `runs.by_section`. name: of the metric, as `ndcg@10`.

    Returns:
      The files written; none without the extra `plots`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    written = []
    for section, own in sections.items():
        stem = section.replace(", ", "-").replace("=", "-")
        figure = Figure(figsize=(7, 4), layout="constrained")
        panel = figure.subplots()
        for number, system in enumerate(own):
            for run, folder in enumerate(system.folders):
                epochs, values = _validation(folder / "metrics.jsonl", name)
                label = system.label if run == 0 else None
                if epochs:
                    panel.plot(epochs, values, f"C{number % 10}", lw=1, label=label)
        if panel.lines:
            panel.set(xlabel="epoch", ylabel=f"validation {name}", title=section)
            written.append(_save(figure, panel, out / f"{stem}-curves.png"))
        for key, text in STUDIED.items():
            points = _points(own, key, name)
            if len(points) < 2:
                continue
            figure = Figure(figsize=(5, 3.5), layout="constrained")
            panel = figure.subplots()
            values, means, spreads = zip(*points, strict=True)
            panel.errorbar(values, means, spreads, fmt="o-", capsize=3, label=name)
            panel.set(xlabel=text, ylabel=f"test {name}, percent", title=section)
            written.append(_save(figure, panel, out / f"{stem}-{key}.png"))
    return written


def _validation(path: Path, name: str) -> tuple[list, list]:
    if not path.exists():
        return [], []
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    key = f"valid/{name}"
    points = [(x["epoch"], x[key]) for x in lines if key in x]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _points(systems, key, name) -> list[tuple]:
    """(value, mean, deviation) of the largest group that differs in `key` alone."""
    groups = {}
    for system in systems:
        if key in system.settings and name in system.results[0]["test"]:
            rest = {k: v for k, v in system.settings.items() if k != key}
            values = [100 * r["test"][name] for r in system.results]
            mean = sum(values) / len(values)
            squares = sum((value - mean) ** 2 for value in values)
            spread = (squares / max(len(values) - 1, 1)) ** 0.5
            point = system.settings[key], mean, spread
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(point)
    return sorted(max(groups.values(), key=len, default=[]))


def _save(figure, panel, path: Path) -> Path:
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize="small")
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
