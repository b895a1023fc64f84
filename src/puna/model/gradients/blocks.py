"""Queries, keys and values of packed documents -> causal attention in blocks of equal size.

Blocks lie on a grid over all tokens, and a mask per block separates documents. So few distinct shapes occur, whatever
the lengths of documents: on a CPU, oneDNN compiles a kernel per shape, at milliseconds and half a megabyte each. The
forward pass is torch's own attention. Torch's backward pass does not use bfloat16 instructions; the one here consists
of plain matrix products, and recomputes the probabilities instead of storing them.

Shapes: T tokens, H query heads, K key/value heads, G query heads per key/value head, E head width, Q and S the query
and key tokens of a block, R = G Q the queries of a key/value head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BLOCK_LEN, KEYS_STEP = 192, 64
# Total size of masks to cache; larger masks are rebuilt for every layer.
KEPT_ELEMENTS = 2**24


@dataclass(frozen=True)
class Block:
    """Queries start .. end - 1 over keys first .. end - 1; a query attends to the query's document, up to the query.

    Example: see `block_spans`.
    """

    first: int
    start: int
    end: int
    documents_Q1: torch.Tensor  # first position of the document of each query
    kept_QS: torch.Tensor | None = None

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask: [Q, S] of 0 and -inf."""
        if self.kept_QS is not None:
            return self.kept_QS
        keys_S, queries_Q1 = torch.arange(self.first, self.end), torch.arange(self.start, self.end)[:, None]
        is_hidden_QS = (keys_S < self.documents_Q1) | (keys_S > queries_Q1)
        return torch.zeros(is_hidden_QS.shape, dtype=dtype).masked_fill_(is_hidden_QS, -torch.inf)


def attend_in_blocks(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, blocks: Sequence[Block]
) -> torch.Tensor:
    """Return out_THE. The backward pass rounds scores to the dtype of the activations."""
    return _Blocks.apply(q_THE, k_TKE, v_TKE, blocks)  # type: ignore[return-value]


def causal_blocks(lengths: Sequence[int], dtype: torch.dtype) -> list[Block]:
    """Divide concatenated documents into blocks."""
    starts_T = _document_starts(lengths)
    blocks: list[Block] = []
    num_kept = 0
    for first, start, end in block_spans(lengths):
        block = Block(first, start, end, starts_T[start:end, None])
        num_kept += (block.end - block.start) * (block.end - block.first)
        blocks.append(replace(block, kept_QS=block.mask(dtype)) if num_kept <= KEPT_ELEMENTS else block)
    return blocks


def block_spans(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first key, first query, end) of all blocks over documents of the given lengths.

    Example:
        >>> list(block_spans([300]))
        [(0, 0, 192), (0, 192, 300)]
    """
    starts_T = _document_starts(lengths)
    for start in range(0, len(starts_T), BLOCK_LEN):
        end = min(start + BLOCK_LEN, len(starts_T))
        # A whole number of steps back from the end of the block, as far as the positions allow.
        steps = -(-(end - int(starts_T[start])) // KEYS_STEP)
        yield max(0, end - steps * KEYS_STEP), start, end


def _document_starts(lengths: Sequence[int]) -> torch.Tensor:
    """Return the first position of every token's document."""
    sizes = torch.tensor(lengths)
    return torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, blocks: Sequence[Block]
    ) -> torch.Tensor:
        ctx.save_for_backward(q_THE, k_TKE, v_TKE)
        ctx.blocks = blocks
        return torch.cat([_attend(q_THE, k_TKE, v_TKE, block) for block in blocks])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (out_THE,) = gradients
        q_THE, k_TKE, v_TKE = ctx.saved_tensors
        scale = q_THE.shape[-1] ** -0.5
        q = torch.empty_like(q_THE)
        k_KTE, v_KTE = (torch.zeros_like(x.transpose(0, 1)) for x in (k_TKE, v_TKE))
        for block in ctx.blocks:
            keys = slice(block.first, block.end)
            q_KRE = _queries(q_THE, k_TKE, block)
            weights_KRS = _weights(q_KRE, k_TKE, block)
            out_KRE = _grouped(out_THE, k_TKE, block).flatten(1, 2)
            v_KTE[:, keys].baddbmm_(weights_KRS.transpose(1, 2), out_KRE)
            scores_KRS = torch.bmm(out_KRE, v_TKE[keys].permute(1, 2, 0))
            scores_KRS = torch.ops.aten._softmax_backward_data(scores_KRS, weights_KRS, -1, weights_KRS.dtype)
            k_KTE[:, keys].baddbmm_(scores_KRS.transpose(1, 2), q_KRE)
            _put(q, k_TKE, block, torch.bmm(scores_KRS, k_TKE[keys].transpose(0, 1)).mul_(scale))
        return q, k_KTE.transpose(0, 1), v_KTE.transpose(0, 1), None


def _attend(q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    keys = slice(block.first, block.end)
    q_HQE, k_KSE, v_KSE = (x.transpose(0, 1)[None] for x in (q_THE[block.start : block.end], k_TKE[keys], v_TKE[keys]))
    is_grouped, mask_QS = q_THE.shape[1] != k_TKE.shape[1], block.mask(q_THE.dtype)
    out_1HQE = F.scaled_dot_product_attention(q_HQE, k_KSE, v_KSE, attn_mask=mask_QS, enable_gqa=is_grouped)
    return out_1HQE[0].transpose(0, 1)


def _grouped(x_THE: torch.Tensor, k_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    """Return a view of the queries or outputs of a block: [K, G, Q, E]."""
    return x_THE[block.start : block.end].unflatten(1, (k_TKE.shape[1], -1)).permute(1, 2, 0, 3)


def _put(x_THE: torch.Tensor, k_TKE: torch.Tensor, block: Block, found_KRE: torch.Tensor) -> None:
    """Write the outputs of a block's queries to their positions."""
    place_KGQE = _grouped(x_THE, k_TKE, block)
    place_KGQE.copy_(found_KRE.view(place_KGQE.shape))


def _queries(q_THE: torch.Tensor, k_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    """Return the scaled queries of a block: [K, R, E]."""
    return (_grouped(q_THE, k_TKE, block) * q_THE.shape[-1] ** -0.5).flatten(1, 2)


def _weights(q_KRE: torch.Tensor, k_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    """Return the attention weights of a block: [K, R, S], rows with sum 1."""
    scores_KRS = torch.bmm(q_KRE, k_TKE[block.first : block.end].permute(1, 2, 0))
    scores_KRS.unflatten(1, (-1, block.end - block.start)).add_(block.mask(scores_KRS.dtype))
    return scores_KRS.softmax(-1)
