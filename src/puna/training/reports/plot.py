"""Rows of metrics -> a picture of a run over the tokens read: losses, learning rate, gradient norm, entropies."""

from pathlib import Path
from typing import Any

PANELS = {
    "loss": "loss",
    "learning rate": "learning_rate",
    "gradient norm": "gradient_norm",
    "entropy in nats": "entropy",
}


def plot_losses(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw every loss of `rows`, and what else is known of a run, as the PNG `path`; without matplotlib nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title)
    for axes, (label, ending) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set(xlabel="tokens", ylabel=label)
        axes.grid(alpha=0.3)
        _draw(axes, rows, ending)
    figure.savefig(path, dpi=100)


def _draw(axes: Any, rows: list[dict[str, Any]], ending: str) -> None:
    """Draw all figures whose names have this ending."""
    names = dict.fromkeys(name for row in rows for name in row if name.endswith(ending) and row[name] is not None)
    for name in names:
        points = [(row["tokens"], row[name]) for row in rows if row.get(name) is not None]
        marker = "o" if name == "validation_loss" else ""
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=0.8, marker=marker)
    if names:
        axes.legend(fontsize="small")
