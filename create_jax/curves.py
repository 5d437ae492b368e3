"""The training curves of a run as a picture; needs the extra `plots`."""

import json
from pathlib import Path


def draw(metrics: Path, picture: Path, select_by: str) -> bool:
    """Draws loss and validation metric over epochs, a line a stage; warm-up is shaded.

    Args:
      metrics: the run's metrics.jsonl. picture: the PNG to write.

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
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key in zip(panels, ("loss", f"valid/{select_by}"), strict=True):
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
    figure.savefig(picture, dpi=120)
    return True
