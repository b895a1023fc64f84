"""Queries, keys and values of packed documents -> causal attention, whose backward pass goes block by block.

On a CPU torch's own kernel is twice as fast forward as plain matrix products, but its backward pass doesn't use
bfloat16 instructions: here that one computes the probabilities of a block of queries again, and none are held.

Shapes: T tokens, H query heads, K key/value heads, G query heads of one key/value head, E head width, Q and S the query
and key tokens of one block, R = G Q the queries of one key/value head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BLOCK_LEN = 192


class Block(NamedTuple):
    """Queries start .. end - 1 over keys first .. end - 1; the mask is added to the scores of the queries' own keys."""

    first: int
    start: int
    end: int
    mask_QQ: torch.Tensor


class Span(NamedTuple):
    """What is attended to at once: one document, or short ones side by side that share a block."""

    first: int
    end: int
    num_documents: int
    blocks: Sequence[Block]


def attend_in_blocks(
    q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, spans: Sequence[Span]
) -> torch.Tensor:
    """Return out_THE. Going back, scores are rounded to the activations' dtype."""
    return _Blocks.apply(q_THE, k_TKE, v_TKE, spans)  # type: ignore[return-value]


def causal_spans(lengths: Sequence[int], dtype: torch.dtype, *, joins_short: bool = True) -> list[Span]:
    """Divide documents that lie one behind the other; `joins_short` puts short neighbours into one block."""
    spans: list[Span] = []
    triangles: dict[int, torch.Tensor] = {}
    first = 0
    for group in _group(lengths) if joins_short else [[length] for length in lengths]:
        end = first + sum(group)
        starts = range(first, end, BLOCK_LEN)
        for size in {min(BLOCK_LEN, end - start) for start in starts} - triangles.keys():
            triangles[size] = _mask([size], dtype)
        if len(group) > 1:
            blocks = [Block(first, first, end, _mask(group, dtype))]
        else:
            sizes = [min(BLOCK_LEN, end - start) for start in starts]
            blocks = [
                Block(first, start, start + size, triangles[size]) for start, size in zip(starts, sizes, strict=True)
            ]
        spans.append(Span(first, end, len(group), blocks))
        first = end
    return spans


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, spans: Sequence[Span]
    ) -> torch.Tensor:
        ctx.save_for_backward(q_THE, k_TKE, v_TKE)
        ctx.blocks = [block for span in spans for block in span.blocks]
        return torch.cat([_attend(q_THE, k_TKE, v_TKE, span) for span in spans])

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


def _attend(q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor, span: Span) -> torch.Tensor:
    q_HTE, k_KTE, v_KTE = (x[span.first : span.end].transpose(0, 1) for x in (q_THE, k_TKE, v_TKE))
    is_one = span.num_documents == 1
    out_1HTE = F.scaled_dot_product_attention(
        *(q_HTE[None], k_KTE[None], v_KTE[None]),
        attn_mask=None if is_one else span.blocks[0].mask_QQ,
        is_causal=is_one,
        enable_gqa=q_HTE.shape[0] != k_KTE.shape[0],
    )
    return out_1HTE[0].transpose(0, 1)


def _grouped(x_THE: torch.Tensor, k_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    """Return a view of a block's queries, or of what becomes of them: [K, G, Q, E]."""
    return x_THE[block.start : block.end].unflatten(1, (k_TKE.shape[1], -1)).permute(1, 2, 0, 3)


def _put(x_THE: torch.Tensor, k_TKE: torch.Tensor, block: Block, found_KRE: torch.Tensor) -> None:
    """Write what was found for a block's queries to their places."""
    place_KGQE = _grouped(x_THE, k_TKE, block)
    place_KGQE.copy_(found_KRE.view(place_KGQE.shape))


def _queries(q_THE: torch.Tensor, k_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    """Return a block's queries, scaled: [K, R, E]."""
    return (_grouped(q_THE, k_TKE, block) * q_THE.shape[-1] ** -0.5).flatten(1, 2)


def _weights(q_KRE: torch.Tensor, k_TKE: torch.Tensor, block: Block) -> torch.Tensor:
    """Return what each query attends to: [K, R, S], rows that sum to 1."""
    scores_KRS = torch.bmm(q_KRE, k_TKE[block.first : block.end].permute(1, 2, 0))
    size = block.end - block.start
    scores_KRS.unflatten(1, (-1, size))[..., -size:].add_(block.mask_QQ)
    return scores_KRS.softmax(-1)


def _group(lengths: Sequence[int]) -> list[list[int]]:
    """Join neighbouring documents that fit into one block: many small products cost more than one masked one."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= BLOCK_LEN:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def _mask(lengths: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Hide from each token what stands after it and what belongs to another document."""
    size = sum(lengths)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    is_seen = (documents[:, None] == documents[None, :]).tril()
    return torch.zeros(size, size, dtype=dtype).masked_fill_(~is_seen, -torch.inf)
