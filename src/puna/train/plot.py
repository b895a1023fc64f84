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
    names = [name for name in rows[0] if name.endswith("loss")] if rows else []
    names += [name for name in ("validation_loss",) if any(name in row for row in rows)]
    for name in names:
        points = [(row["tokens"], row[name]) for row in rows if name in row]
        marker = "o" if name == "validation_loss" else ""
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=0.8, marker=marker)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
