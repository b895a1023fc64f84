"""How much each part is needed, and sizes -> which parts are kept, and in which steps the others go.

Shapes: D model width, H query heads, K key/value heads, E head width, P rotary pairs, I hidden channels.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from puna.conversion.compression.pruning.importance import Importance, LayerImportance
from puna.conversion.compression.pruning.slicing import LayerSelection, Selection, Tying, select_all
from puna.model.config import LlamaConfig

# The kinds of cut in the order in which they are made and measured, and the sizes that each changes.
KINDS = {
    "layers": ("num_layers",),
    "heads": ("num_heads", "num_kv_heads"),
    "head width": ("head_dim",),
    "hidden channels": ("hidden_dim",),
    "model width": ("dim",),
    "one table": ("tie_embeddings",),
}


def pruning_steps(parent: LlamaConfig, target: LlamaConfig) -> Iterator[tuple[str, LlamaConfig]]:
    """Yield each kind of cut that the target asks for, with the sizes once it is made."""
    config = parent
    for kind, names in KINDS.items():
        changed = replace(config, **{name: getattr(target, name) for name in names})
        if changed != config:
            config = changed
            yield kind, config
    assert config == target, "sizes that no cut changes"


def select(importance: Importance, parent: LlamaConfig, target: LlamaConfig, tying: Tying = "embeddings") -> Selection:
    """Return the most needed parts of a network for these sizes."""
    whole = select_all(parent)
    numbers = top_indices(importance.depth_L, target.num_layers).tolist()
    layers = tuple(_select_in_layer(number, importance.layers[number], parent, target) for number in numbers)
    dim_D = top_indices(importance.dim_D, target.dim)
    is_narrower = target.dim < parent.dim
    return Selection(
        target,
        layers,
        # Evenly, beginning with the fastest: so a narrower head's own frequencies are those that its pairs had.
        whole.pairs_P[:: parent.head_dim // target.head_dim],
        dim_D,
        tying,
        {name: kept_D[dim_D].mean().item() for name, kept_D in importance.energies.items()} if is_narrower else {},
    )


def top_indices(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the places of the `count` greatest scores, in their order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _select_in_layer(index: int, scores: LayerImportance, parent: LlamaConfig, target: LlamaConfig) -> LayerSelection:
    """Key/value heads go with all their query heads; then each that is left keeps equally many of its own."""
    keys_K = top_indices(scores.keys_K, target.num_kv_heads)
    group_size, num_left = (config.num_heads // config.num_kv_heads for config in (parent, target))
    queries = [
        key * group_size + top_indices(scores.queries_H[key * group_size : (key + 1) * group_size], num_left)
        for key in keys_K
    ]
    values = [top_indices(scores.values_KE[key], target.head_dim) for key in keys_K]
    hidden_I = top_indices(scores.hidden_I, target.hidden_dim)
    return LayerSelection(index, torch.cat(queries), keys_K, torch.stack(values), hidden_I)
