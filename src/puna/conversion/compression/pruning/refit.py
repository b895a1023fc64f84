"""A pruned network, the parent and calibration text -> output matrices fitted to the parent's residual stream.

Layer by layer, ridge regression around the sliced weights fits o_proj and down_proj. The target of down_proj is the
parent's stream before the next selected layer, so that down_proj compensates for dropped layers too. No gradients;
all other weights stay.

Shapes: T tokens, D model width, I inputs of a matrix.
"""

from collections.abc import Sequence

import torch

from puna.conversion.compression.calibrate import Batch
from puna.conversion.compression.pruning.layerwise import Texts, embed_texts, read_block, run_block
from puna.conversion.compression.pruning.slicing import Selection, slice_source
from puna.formats.checkpoint.source import Source, disk_name
from puna.model.llama import MLP, Attention, Block, Linear
from puna.pipeline.errors import CheckpointError
from puna.pipeline.progress import Progress

# Ridge penalty around the sliced weights, as a share of the mean square of the inputs.
RIDGE = 0.01


@torch.no_grad()
def refit(
    parent: Source, selection: Selection, texts: Texts, dtype: torch.dtype, bar: Progress
) -> dict[str, torch.Tensor]:
    """Return the refitted matrices by name on disk; `bar` counts selected layers."""
    child = slice_source(parent, selection)
    ours, theirs = embed_texts(child, texts, dtype), embed_texts(parent, texts, dtype)
    fitted: dict[str, torch.Tensor] = {}
    next_ones = [layer.index for layer in selection.layers[1:]] + [parent.config.num_layers]
    for index in range(selection.layers[0].index):
        theirs = run_block(read_block(parent, index), theirs)
    for number, (layer, next_one) in enumerate(zip(selection.layers, next_ones, strict=True)):
        block, parents = read_block(child, number), read_block(parent, layer.index)
        middles = [_add(batch, _attended(parents, batch)) for batch in theirs]
        _fit(block.self_attn, "o_proj", block, ours, middles, selection)
        ours = [_add(batch, _attended(block, batch)) for batch in ours]
        theirs = [_add(batch, parents.mlp(parents.post_attention_layernorm(batch.x_TD))) for batch in middles]
        for index in range(layer.index + 1, next_one):
            theirs = run_block(read_block(parent, index), theirs)
        _fit(block.mlp, "down_proj", block, ours, theirs, selection)
        ours = [_add(batch, block.mlp(block.post_attention_layernorm(batch.x_TD))) for batch in ours]
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            name = disk_name(f"layers.{number}.{part}.weight")
            fitted[name] = block.get_parameter(f"{part}.weight").to(parent.dtype)
        bar.advance()
    return fitted


def _attended(block: Block, batch: Batch) -> torch.Tensor:
    return block.self_attn(block.input_layernorm(batch.x_TD), batch.rope, 0, batch.attend)


def _add(batch: Batch, more_TD: torch.Tensor) -> Batch:
    return batch._replace(x_TD=batch.x_TD + more_TD)


def _fit(
    part: Attention | MLP, name: str, block: Block, ours: Sequence[Batch], theirs: Sequence[Batch], selection: Selection
) -> None:
    """Fit the matrix `name` of an attention or MLP: minimize |ours + written - theirs|^2 over calibration tokens."""
    linear = part.get_submodule(name)
    assert isinstance(linear, Linear)
    inputs: list[torch.Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: inputs.append(args[0].float()))
    products_II, errors_DI = torch.zeros(()), torch.zeros(())
    try:
        for our, their in zip(ours, theirs, strict=True):
            if isinstance(part, Attention):
                written_TD = _attended(block, our)
            else:
                written_TD = part(block.post_attention_layernorm(our.x_TD))
            error_TD = (their.x_TD[:, selection.dim_D] - our.x_TD - written_TD).float()
            x_TI = inputs.pop()
            products_II, errors_DI = products_II + x_TI.T @ x_TI, errors_DI + error_TD.T @ x_TI
    finally:
        handle.remove()
    products_II, errors_DI = products_II.double(), errors_DI.double()
    products_II.diagonal().add_(RIDGE * products_II.diagonal().mean() + torch.finfo(torch.float32).tiny)
    change_DI = torch.linalg.solve(products_II, errors_DI, left=False)
    if not change_DI.isfinite().all():
        raise CheckpointError("the refit gives NaN or infinity", expected="finite activations in every layer")
    linear.weight = torch.nn.Parameter(linear.weight.float() + change_DI.float(), requires_grad=False)
