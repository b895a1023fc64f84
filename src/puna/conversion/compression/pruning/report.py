"""Selection, importance scores and the loss after every pruning step -> report.md, importance.json and prune.png."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puna.conversion.compression.pruning.importance import Importance
from puna.conversion.compression.pruning.layerwise import Scores
from puna.conversion.compression.pruning.slicing import Selection
from puna.model.config import LlamaConfig
from puna.pipeline.artifacts.artifact import write_text

HOW = (
    "On held-out text, of documents all tokens, of conversations what the assistant says; KL in nats a token. Cuts are "
    "made one on top of the other, in this order."
)
SHARES = "How much of the importance of all parts of a kind lies in those that were kept; kept query heads by number."
SIZES = ("num_layers", "dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim", "tie_embeddings")


@dataclass(frozen=True)
class Step:
    """Sizes of the network after a pruning step, with loss and KL divergence on held-out text."""

    name: str
    config: LlamaConfig
    scores: Scores

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.scores.loss, 700.0))


def write_report(directory: Path, importance: Importance, selection: Selection, steps: Sequence[Step]) -> bool:
    """Write report.md, importance.json and prune.png; return False without matplotlib, which prune.png needs."""
    write_text(directory / "report.md", _markdown(importance, selection, steps))
    write_text(directory / "importance.json", json.dumps(_importance_json(importance, selection)) + "\n")
    return _plot(importance, selection, steps, directory / "prune.png")


def _markdown(importance: Importance, selection: Selection, steps: Sequence[Step]) -> str:
    before, after = steps[0].config, steps[-1].config
    sizes = [
        [name, f"{getattr(before, name):,}", f"{getattr(after, name):,}"]
        for name in SIZES
        if getattr(before, name) != getattr(after, name)
    ]
    sizes.append(["parameters", f"{before.num_parameters:,}", f"{after.num_parameters:,}"])
    costs = [
        [step.name, f"{step.config.num_parameters:,}", f"{step.perplexity:.4g}", f"{step.scores.divergence:.4f}"]
        for step in steps
    ]
    sections = ["# What was cut", _table(["", "before", "after"], sizes), "## What it cost", HOW]
    sections += [_table(["after", "parameters", "perplexity", "KL from the parent"], costs)]
    sections += ["## What was kept of each layer", SHARES, _layers(importance, selection)]
    dim_share = _share(importance.dim_D, selection.dim_D)
    sections.append(
        f"Of the model's width {len(selection.dim_D):,} of {len(importance.dim_D):,} channels: {dim_share}."
    )
    return "\n\n".join(sections) + "\n"


def _layers(importance: Importance, selection: Selection) -> str:
    by_index = {layer.index: layer for layer in selection.layers}
    rows: list[list[str]] = []
    for index, scores in enumerate(importance.layers):
        cells = [f"{index}", f"{scores.influence:.3f}", f"{importance.depth_L[index]:.3f}"]
        layer = by_index.get(index)
        if layer is None:
            rows.append([*cells, "dropped", "", ""])
            continue
        heads = ", ".join(map(str, layer.queries_H.tolist()))
        shares = [_share(scores.queries_H, layer.queries_H), _share(scores.hidden_I, layer.hidden_I)]
        rows.append([*cells, heads, *shares])
    return _table(["layer", "influence", "importance", "query heads", "their share", "hidden channels"], rows)


def _share(scores: torch.Tensor, places: torch.Tensor) -> str:
    total = scores.sum().item()
    return f"{scores[places].sum().item() / total:.1%}" if total else "all are zero"


def _importance_json(importance: Importance, selection: Selection) -> dict[str, Any]:
    """Return importance scores of all parts and indices of the selected parts."""
    layers = [
        {
            "influence": _short(scores.influence),
            "importance": _short(importance.depth_L[index].item()),
            **{name: _rounded(getattr(scores, f"{name}_{axis}")) for name, axis in (("queries", "H"), ("keys", "K"))},
            "hidden": _rounded(scores.hidden_I),
        }
        for index, scores in enumerate(importance.layers)
    ]
    chosen = [
        {
            "layer": layer.index,
            "queries": layer.queries_H.tolist(),
            "keys": layer.keys_K.tolist(),
            "hidden": layer.hidden_I.tolist(),
        }
        for layer in selection.layers
    ]
    return {
        "layers": layers,
        "dim": _rounded(importance.dim_D),
        "kept": {"layers": chosen, "dim": selection.dim_D.tolist(), "tying": selection.tying},
    }


def _rounded(scores: torch.Tensor) -> list[float]:
    return [_short(value) for value in scores.tolist()]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _plot(importance: Importance, selection: Selection, steps: Sequence[Step], path: Path) -> bool:
    """Plot the loss after every step, and the importance of layers and channels, channels in descending order."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 7), layout="constrained")
    (cost, depth), (hidden, dim) = figure.subplots(2, 2)
    cost.plot([step.name for step in steps], [step.scores.loss for step in steps], marker="o")
    cost.set(title="loss of held-out text after each step", ylabel="nats a token")
    cost.tick_params(axis="x", rotation=30)
    chosen = {layer.index for layer in selection.layers}
    colors = ["tab:blue" if index in chosen else "lightgray" for index in range(len(importance.layers))]
    depth.bar(range(len(importance.layers)), importance.depth_L.tolist(), color=colors)
    depth.set(title="importance of layers; gray ones were dropped", xlabel="layer")
    for index in chosen:
        hidden.plot(importance.layers[index].hidden_I.sort(descending=True).values.tolist(), linewidth=0.8)
    hidden.axvline(selection.config.hidden_dim, color="gray", linestyle=":")
    hidden.set(title="hidden channels, one line a layer, cut at the dots", yscale="log")
    dim.plot(importance.dim_D.sort(descending=True).values.tolist())
    dim.axvline(selection.config.dim, color="gray", linestyle=":")
    dim.set(title="channels of the residual stream", yscale="log")
    figure.savefig(path, dpi=110)
    return True


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ruler, *rows))
