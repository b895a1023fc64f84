"""A network and calibration text -> importance scores of layers, heads and channels.

One pass over the text, with the weights of one layer at a time:
- heads and hidden channels: contribution to the residual stream, or the OBS loss (obs.py);
- layers: rotation of the residual stream (Men et al. 2024, ShortGPT, arXiv 2403.03853), or KL divergence of the
  predictions without the layer;
- channels of the residual stream: squared norm outputs times squared weights of the matrices behind the norms (after
  Muralidharan et al. 2024, Minitron, arXiv 2407.14679, with norm outputs alone).
selection.py selects.

Shapes: T tokens, D model width, L layers, H query heads, K key/value heads, E head width, I hidden channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from puna.conversion.compression.calibrate import Batch
from puna.conversion.compression.pruning.layerwise import (
    Reference,
    Texts,
    embed_texts,
    final_norm,
    read_block,
    run_block,
)
from puna.conversion.compression.pruning.obs import contributions, obs_losses
from puna.formats.checkpoint.source import Source
from puna.model.config import LlamaConfig
from puna.model.llama import Block, RMSNorm
from puna.pipeline.errors import CheckpointError
from puna.pipeline.progress import Progress

Width = Literal["contribution", "elimination"]
Depth = Literal["influence", "divergence"]
# Matrices behind a norm, by the name of the norm in a layer.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


class LayerImportance(NamedTuple):
    """Importance scores of the parts of a layer; `influence` is 1 - cosine of the layer's input and output."""

    influence: float
    queries_H: torch.Tensor
    keys_K: torch.Tensor
    values_KE: torch.Tensor
    hidden_I: torch.Tensor


@dataclass(frozen=True)
class Importance:
    """Importance scores of all parts of a network; scores compare within one kind of part and one layer.

    Args:
        depth_L: Scores of the layers.
        dim_D: Scores of the channels of the residual stream.
        energies: Mean squares of the channels at the input of every norm, normalized to a mean of 1, by norm.
        stream_DD: Second moments of the normalized residual stream, summed over all norms.
    """

    layers: tuple[LayerImportance, ...]
    depth_L: torch.Tensor
    dim_D: torch.Tensor
    energies: dict[str, torch.Tensor]
    stream_DD: torch.Tensor


@dataclass
class Moments:
    """Sums of squares or products over tokens, by the name of a module's input or output."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    num_tokens: int = 0

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean(self, name: str) -> torch.Tensor:
        mean = self.sums[name] / self.num_tokens
        if not mean.isfinite().all():
            raise CheckpointError("calibration gives NaN or infinity", expected="finite activations in every layer")
        return mean


@torch.no_grad()
def measure_importance(
    source: Source, texts: Texts, dtype: torch.dtype, bar: Progress, *, width: Width, depth: Depth
) -> Importance:
    """Return importance scores of all parts; `bar` counts passes of the texts through one layer."""
    batches, layers = embed_texts(source, texts, dtype), list[LayerImportance]()
    energies, reads, stream_DD = dict[str, torch.Tensor](), list[torch.Tensor](), torch.zeros(())
    for index in range(source.config.num_layers):
        block = read_block(source, index)
        after, moments = _run_watched(block, batches, is_square=width == "elimination")
        layers.append(_layer_importance(source.config, block, moments, _influence(batches, after), width))
        for name, parts in READERS.items():
            energies[f"layers.{index}.{name}"] = moments.mean(f"{name} in")
            weights = [block.get_parameter(f"{part}.weight").float() for part in parts]
            reads.append(sum(weight.square().sum(0) for weight in weights) * moments.mean(f"{name} out"))
        stream_DD = stream_DD + moments.mean("stream")
        batches = after
        bar.advance()
    norm, last = final_norm(source), Moments(num_tokens=sum(len(text.ids) for text in texts))
    for batch in batches:
        _add_norm(last, "norm", batch.x_TD, norm)
    energies["norm"] = last.mean("norm in")
    reads.append(last.mean("norm out"))
    influences_L = torch.tensor([layer.influence for layer in layers])
    depth_L = influences_L if depth == "influence" else divergences_without(source, texts, dtype, bar)
    # Every norm weighs the same: scores are shares of the norm's total.
    dim_D = torch.stack([read_D / read_D.sum().clamp(min=1e-30) for read_D in reads]).mean(0)
    return Importance(tuple(layers), depth_L, dim_D, energies, stream_DD + last.mean("stream"))


@torch.no_grad()
def divergences_without(source: Source, texts: Texts, dtype: torch.dtype, bar: Progress) -> torch.Tensor:
    """Return KL(model, model without a layer) for every layer, in nats per token."""
    reference, before = Reference(source, texts, dtype, bar), embed_texts(source, texts, dtype)
    divergences: list[float] = []
    for left_out in range(source.config.num_layers):
        batches: Sequence[Batch] = before
        for index in range(left_out + 1, source.config.num_layers):
            batches = run_block(read_block(source, index), batches)
        divergences.append(reference.score_batches(source, batches).divergence)
        before = run_block(read_block(source, left_out), before)
        bar.advance(source.config.num_layers - left_out)
    return torch.tensor(divergences)


def _run_watched(block: Block, batches: Sequence[Batch], *, is_square: bool) -> tuple[list[Batch], Moments]:
    """Return the texts behind a layer and input moments; `is_square` sums products of hidden channels, not squares."""
    moments = Moments(num_tokens=sum(len(batch.x_TD) for batch in batches))

    def watch_inputs(name: str, is_square: bool) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x_TI = inputs[0].float()
            moments.add(name, x_TI.T @ x_TI if is_square else x_TI.square().sum(0))

        return block.get_submodule(name).register_forward_pre_hook(add)

    def watch_norm(name: str) -> torch.utils.hooks.RemovableHandle:
        norm = block.get_submodule(name)
        assert isinstance(norm, RMSNorm)
        return norm.register_forward_pre_hook(lambda _, inputs: _add_norm(moments, name, inputs[0], norm))

    handles = [watch_inputs("self_attn.o_proj", True), watch_inputs("mlp.down_proj", is_square)]
    handles += map(watch_norm, READERS)
    try:
        return run_block(block, batches), moments
    finally:
        for handle in handles:
            handle.remove()


def _add_norm(moments: Moments, name: str, x_TD: torch.Tensor, norm: RMSNorm) -> None:
    """Add squares of a norm's input, normalized per token, and squares of the norm's output."""
    x_TD = F.rms_norm(x_TD.float(), (x_TD.shape[-1],), eps=norm.eps)
    squares_D = x_TD.square().sum(0)
    moments.add("stream", x_TD.T @ x_TD)
    moments.add(f"{name} in", squares_D)
    moments.add(f"{name} out", squares_D * norm.weight.float().square())


def _influence(before: Sequence[Batch], after: Sequence[Batch]) -> float:
    """Return 1 - mean cosine of the residual stream before and behind a layer."""
    cosines = [
        F.cosine_similarity(inputs.x_TD.float(), outputs.x_TD.float(), dim=-1)
        for inputs, outputs in zip(before, after, strict=True)
    ]
    return 1.0 - torch.cat(cosines).mean().item()


def _layer_importance(
    config: LlamaConfig, block: Block, moments: Moments, influence: float, width: Width
) -> LayerImportance:
    o_proj, down_proj = (block.get_parameter(f"{part}.weight") for part in ("self_attn.o_proj", "mlp.down_proj"))
    values_HE = torch.arange(o_proj.shape[1]).view(config.num_heads, config.head_dim)
    values_KS = values_HE.view(config.num_kv_heads, -1)
    heads = moments.mean("self_attn.o_proj")
    # A value channel counts with the query heads of the whole group.
    singles = contributions(o_proj, heads, values_HE.view(-1, 1)).view(config.num_kv_heads, -1, config.head_dim)
    hidden = moments.mean("mlp.down_proj")
    if width == "elimination":
        hidden_I = obs_losses(down_proj, hidden, torch.arange(config.hidden_dim)[:, None])
        queries_H, keys_K = (obs_losses(o_proj, heads, groups) for groups in (values_HE, values_KS))
    else:
        hidden_I = down_proj.float().square().sum(0) * hidden
        queries_H, keys_K = (contributions(o_proj, heads, groups) for groups in (values_HE, values_KS))
    return LayerImportance(influence, queries_H, keys_K, singles.sum(1), hidden_I)
