"""A Source and a Selection -> the smaller network as a Source that slices one tensor at a time, on reading.

Selected parts keep their order, and selecting everything gives the same tensors. selection.py selects.

Shapes: D model width, H query heads, K key/value heads, E head width, P its rotary pairs, I hidden channels of the MLP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch

from puna.formats.checkpoint.source import Source
from puna.model.config import LlamaConfig

# Source of a tied table for an untied parent: the embeddings, the head, or the mean of both.
Tying = Literal["embeddings", "head", "mean"]
EMBEDDINGS, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True)
class LayerSelection:
    """Indices of the selected parts of one parent layer: heads, value channels of a key/value head, hidden channels."""

    index: int
    queries_H: torch.Tensor
    keys_K: torch.Tensor
    values_KE: torch.Tensor
    hidden_I: torch.Tensor


@dataclass(frozen=True)
class Selection:
    """Indices of the selected parts of a network, with the sizes of the result.

    All heads keep the same rotary pairs, since the index of a pair sets the frequency. `energies` maps a norm to the
    share of the input's mean square in the selected channels; a norm over fewer channels is scaled by the share's root.

    Example: see `select_all` and selection.py's `select`.
    """

    config: LlamaConfig
    layers: tuple[LayerSelection, ...]
    pairs_P: torch.Tensor
    dim_D: torch.Tensor
    tying: Tying = "embeddings"
    energies: Mapping[str, float] = field(default_factory=dict)


def select_all(config: LlamaConfig) -> Selection:
    """Return the selection of every part of a network."""
    layer = LayerSelection(
        0,
        torch.arange(config.num_heads),
        torch.arange(config.num_kv_heads),
        torch.arange(config.head_dim).expand(config.num_kv_heads, -1),
        torch.arange(config.hidden_dim),
    )
    layers = tuple(replace(layer, index=index) for index in range(config.num_layers))
    return Selection(config, layers, torch.arange(config.head_dim // 2), torch.arange(config.dim))


def slice_source(parent: Source, selection: Selection, refitted: Mapping[str, torch.Tensor] | None = None) -> Source:
    """Return the selected network; `refitted` tensors, by name, replace sliced tensors."""
    return replace(parent, config=selection.config, read=partial(_read, parent, selection, refitted or {}))


def _read(parent: Source, selection: Selection, refitted: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name in refitted:
        return refitted[name]
    if name in (EMBEDDINGS, HEAD):
        return _take(_table(parent, selection, name), columns=selection.dim_D)
    if name == NORM:
        return _slice_norm(parent.read(name), selection, "norm")
    _, _, number, part = name.removesuffix(".weight").split(".", maxsplit=3)
    layer = selection.layers[int(number)]
    tensor = parent.read(f"model.layers.{layer.index}.{part}.weight")
    if part.endswith("norm"):
        return _slice_norm(tensor, selection, f"layers.{layer.index}.{part}")
    rows, columns = _rows_and_columns(part, layer, selection, parent.config)
    tensor = _take(tensor, rows, columns)
    # Attention divides scores by sqrt(head_dim): scale queries so that a rotary pair contributes as in the parent.
    ratio = selection.config.head_dim / parent.config.head_dim
    return tensor if ratio == 1 or part != "self_attn.q_proj" else tensor * ratio**0.5


def _table(parent: Source, selection: Selection, name: str) -> torch.Tensor:
    if parent.config.tie_embeddings:
        return parent.read(EMBEDDINGS)
    if not selection.config.tie_embeddings or selection.tying != "mean":
        is_head = name == HEAD if not selection.config.tie_embeddings else selection.tying == "head"
        return parent.read(HEAD if is_head else EMBEDDINGS)
    return torch.lerp(parent.read(EMBEDDINGS).float(), parent.read(HEAD).float(), 0.5)


def _slice_norm(weight_D: torch.Tensor, selection: Selection, path: str) -> torch.Tensor:
    return _take(weight_D, selection.dim_D) * selection.energies.get(path, 1.0) ** 0.5


def _rows_and_columns(
    part: str, layer: LayerSelection, selection: Selection, config: LlamaConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the selected rows and columns of a matrix of a layer."""
    if part in ("mlp.gate_proj", "mlp.up_proj"):
        return layer.hidden_I, selection.dim_D
    if part == "mlp.down_proj":
        return selection.dim_D, layer.hidden_I
    rotated_E = torch.cat((selection.pairs_P, selection.pairs_P + config.head_dim // 2))
    if part == "self_attn.q_proj":
        return (layer.queries_H[:, None] * config.head_dim + rotated_E).flatten(), selection.dim_D
    if part == "self_attn.k_proj":
        return (layer.keys_K[:, None] * config.head_dim + rotated_E).flatten(), selection.dim_D
    if part == "self_attn.v_proj":
        return (layer.keys_K[:, None] * config.head_dim + layer.values_KE).flatten(), selection.dim_D
    assert part == "self_attn.o_proj", part
    # The output channels of a query head are the value channels of the key/value head.
    values_HE = layer.values_KE.repeat_interleave(len(layer.queries_H) // len(layer.keys_K), dim=0)
    return selection.dim_D, (layer.queries_H[:, None] * config.head_dim + values_HE).flatten()


def _take(tensor: torch.Tensor, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> torch.Tensor:
    """Return the given rows and columns; a tensor that stays whole stays memory-mapped."""
    if rows is not None and len(rows) < tensor.shape[0]:
        tensor = tensor[rows]
    if columns is not None and len(columns) < tensor.shape[1]:
        tensor = tensor[:, columns]
    return tensor
