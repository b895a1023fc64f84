"""Metrics -> loss.png: losses, learning rate, gradient norm and entropies over the number of tokens."""

from pathlib import Path
from typing import Any

from puna.training.loop.observer import Observer
from puna.training.loop.training import Training

PANELS = {
    "loss": "loss",
    "learning rate": "learning_rate",
    "gradient norm": "gradient_norm",
    "entropy in nats": "entropy",
}


class LossPlot(Observer):
    """Observer of the training loop: draws loss.png after the last step.

    Example: `puna sft` writes loss.png beside the checkpoint.
    """

    def end(self, training: Training) -> None:
        run = training.run
        plot_losses(run.read_metrics(), run.output / "loss.png", title=run.stage)


def plot_losses(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw the panels into the PNG `path`; without matplotlib nothing is written."""
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
    """Draw all metrics by the ending of the name."""
    names = dict.fromkeys(name for row in rows for name in row if name.endswith(ending) and row[name] is not None)
    for name in names:
        points = [(row["tokens"], row[name]) for row in rows if row.get(name) is not None]
        marker = "o" if name == "validation_loss" else ""
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=0.8, marker=marker)
    if names:
        axes.legend(fontsize="small")
