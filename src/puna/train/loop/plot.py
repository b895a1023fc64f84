"""Rows of metrics -> a picture of the losses over the tokens read."""

from pathlib import Path
from typing import Any


def plot_losses(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw every loss of `rows` into the PNG at `path`; without matplotlib nothing is drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens", ylabel="loss per trained token", title=title)
    for name in dict.fromkeys(name for row in rows for name in row if name.endswith("loss") and row[name] is not None):
        points = [(row["tokens"], row[name]) for row in rows if row.get(name) is not None]
        marker = "o" if name == "validation_loss" else ""
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=0.8, marker=marker)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=110)
