"""Importance scores and a target size -> the selection of the most important parts, and the order of pruning steps.

Shapes: D model width, H query heads, K key/value heads, E head width, P rotary pairs, I hidden channels.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from puna.conversion.compression.pruning.importance import Importance, LayerImportance
from puna.conversion.compression.pruning.slicing import LayerSelection, Selection, Tying, select_all
from puna.model.config import LlamaConfig

# Kinds of pruning steps in order, with the sizes that a step changes.
KINDS = {
    "layers": ("num_layers",),
    "heads": ("num_heads", "num_kv_heads"),
    "head width": ("head_dim",),
    "hidden channels": ("hidden_dim",),
    "model width": ("dim",),
    "one table": ("tie_embeddings",),
}


def pruning_steps(parent: LlamaConfig, target: LlamaConfig) -> Iterator[tuple[str, LlamaConfig]]:
    """Yield (kind, sizes after the step) for every kind of pruning between `parent` and `target`.

    Example:
        >>> [kind for kind, _ in pruning_steps(SIZES["8b"], replace(SIZES["8b"], num_layers=16, dim=2048))]
        ['layers', 'model width']
    """
    config = parent
    for kind, names in KINDS.items():
        changed = replace(config, **{name: getattr(target, name) for name in names})
        if changed != config:
            config = changed
            yield kind, config
    assert config == target, "a size without a pruning step"


def select(importance: Importance, parent: LlamaConfig, target: LlamaConfig, tying: Tying = "embeddings") -> Selection:
    """Return the most important layers, heads and channels of `parent` for the sizes of `target`."""
    whole = select_all(parent)
    numbers = top_indices(importance.depth_L, target.num_layers).tolist()
    layers = tuple(_select_in_layer(number, importance.layers[number], parent, target) for number in numbers)
    dim_D = top_indices(importance.dim_D, target.dim)
    is_narrower = target.dim < parent.dim
    return Selection(
        target,
        layers,
        # Every n-th pair, fastest first: the remaining pairs keep the frequencies that a narrower head gives them.
        whole.pairs_P[:: parent.head_dim // target.head_dim],
        dim_D,
        tying,
        {name: energy_D[dim_D].mean().item() for name, energy_D in importance.energies.items()} if is_narrower else {},
    )


def top_indices(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the `count` highest scores in ascending order; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _select_in_layer(index: int, scores: LayerImportance, parent: LlamaConfig, target: LlamaConfig) -> LayerSelection:
    """Select key/value heads with their groups of query heads, then equally many query heads of every group."""
    keys_K = top_indices(scores.keys_K, target.num_kv_heads)
    group_size, num_left = (config.num_heads // config.num_kv_heads for config in (parent, target))
    queries = [
        key * group_size + top_indices(scores.queries_H[key * group_size : (key + 1) * group_size], num_left)
        for key in keys_K
    ]
    values = [top_indices(scores.values_KE[key], target.head_dim) for key in keys_K]
    hidden_I = top_indices(scores.hidden_I, target.hidden_dim)
    return LayerSelection(index, torch.cat(queries), keys_K, torch.stack(values), hidden_I)
