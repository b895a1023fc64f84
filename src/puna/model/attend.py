"""Lengths of packed documents -> an `attend` function: causal attention within every document.

The engine's attention over the KV cache lies in engine/runners.

Shapes: T tokens, H query heads, K key/value heads, G query heads per key/value head, E head width, Q queries of a
block, S positions so far, B sequences of a batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from puna.model.gradients.blocks import Block, attend_in_blocks, causal_blocks
from puna.model.llama import Attend

# Length above which torch's own causal attention is faster without gradients, since it skips masked blocks.
MAX_BLOCKED_LEN = 2048
# Largest mask of one call with a long prefix; bounds the memory.
MASK_ELEMENTS = 2**21


def packed_attend(lengths: Sequence[int]) -> Attend:
    """Return causal attention over documents concatenated along T.

    NOTE: on a CPU neighbouring documents share blocks, so a NaN in a document reaches the next document.

    Example:
        >>> attend = packed_attend([5, 3])
        >>> model(tokens_T, positions_T, attend).shape
        torch.Size([8, 512])
    """
    sizes = list(lengths)
    blocks: dict[torch.dtype, list[Block]] = {}

    def attend(layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
        is_long = max(sizes) > MAX_BLOCKED_LEN and not torch.is_grad_enabled()
        if q_THE.device.type != "cpu" or is_long:
            documents = zip(*(x.split(sizes) for x in (q_THE, k_TKE, v_TKE)), strict=True)
            return torch.cat([attend_causally(q, k, v) for q, k, v in documents])
        if q_THE.dtype not in blocks:
            blocks[q_THE.dtype] = causal_blocks(sizes, q_THE.dtype)
        return attend_in_blocks(q_THE, k_TKE, v_TKE, blocks[q_THE.dtype])

    return attend


def attend_causally(q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
    """Attend causally within a single document."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THE, k_TKE, v_TKE))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def attend_behind_prefix(q_THE: torch.Tensor, k_KSE: torch.Tensor, v_KSE: torch.Tensor) -> torch.Tensor:
    """Attend causally from the last T of S positions.

    Queries are processed in blocks, so temporary memory does not grow with S.
    """
    length, num_positions = q_THE.shape[0], k_KSE.shape[1]
    q_KGTE = q_THE.unflatten(1, (k_KSE.shape[0], -1)).permute(1, 2, 0, 3)
    step = min(length, max(1, MASK_ELEMENTS // num_positions))
    # NOTE: one mask for all blocks, sliced from the right; masks of many sizes would fragment the heap.
    mask_QS = torch.full((step, num_positions), -torch.inf, dtype=q_THE.dtype, device=q_THE.device)
    mask_QS.triu_(num_positions - step + 1)
    blocks = []
    for start in range(0, length, step):
        q_KGQE = q_KGTE[:, :, start : start + step]
        size, end = q_KGQE.shape[2], num_positions - length + min(start + step, length)
        k_KGSE, v_KGSE = (x[:, None, :end].expand(-1, q_KGQE.shape[1], -1, -1) for x in (k_KSE, v_KSE))
        blocks.append(F.scaled_dot_product_attention(q_KGQE, k_KGSE, v_KGSE, attn_mask=mask_QS[step - size :, -end:]))
    return torch.cat(blocks, dim=2).permute(2, 0, 1, 3).flatten(1, 2)


def attend_singly(
    q_BHE: torch.Tensor, k_BSKE: torch.Tensor, v_BSKE: torch.Tensor, mask_BS: torch.Tensor
) -> torch.Tensor:
    """Attend from a single token per sequence of a batch; the mask is added to the scores."""
    # Query heads of a key head take the place of query positions, so keys need no repetition.
    q_BKGE = q_BHE.unflatten(1, (k_BSKE.shape[2], -1))
    k_BKSE, v_BKSE = k_BSKE.transpose(1, 2), v_BSKE.transpose(1, 2)
    out_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE, attn_mask=mask_BS[:, None, None])
    return out_BKGE.flatten(1, 2)
