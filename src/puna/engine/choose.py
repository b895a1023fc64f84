"""Logits -> chosen ids, and log-probabilities of ids. Knows no requests and draws no random numbers of its own.

Each row's outcome depends on its own logits, settings and draw alone.

Shapes: B rows, N positions or candidates, V vocabulary.
"""

from collections.abc import Sequence

import torch

from puna.engine.sampler import TokenLogprob

# Below this a temperature only makes numbers overflow: the most likely token has all the mass.
GREEDY_BELOW = 1e-5
# Sorting a whole vocabulary of 128k takes 40 times as long as finding the first 256.
NUCLEUS_WIDTH = 256


def choose(
    logits_BV: torch.Tensor, temperatures: Sequence[float], top_ps: Sequence[float], draws: Sequence[float]
) -> list[int]:
    """Choose one id a row: the `draws`-quantile (in 0..1) of its tempered, truncated distribution."""
    ids: list[int] = logits_BV.argmax(-1).tolist()
    warm = [row for row, temperature in enumerate(temperatures) if temperature >= GREEDY_BELOW]
    for rows, has_nucleus in (
        ([row for row in warm if top_ps[row] >= 1], False),
        ([row for row in warm if top_ps[row] < 1], True),
    ):
        if rows:
            device = logits_BV.device
            heat_B1, top_p_B1, draw_B1 = (
                torch.tensor([values[row] for row in rows], dtype=torch.float64, device=device)[:, None]
                for values in (temperatures, top_ps, draws)
            )
            probs_BV = torch.softmax(logits_BV[rows] / heat_B1.float(), dim=-1)
            picked = _nucleus_quantile(probs_BV, top_p_B1, draw_B1) if has_nucleus else _quantile(probs_BV, draw_B1)
            for row, token in zip(rows, picked.tolist(), strict=True):
                ids[row] = token
    return ids


def _nucleus_quantile(
    probs_BV: torch.Tensor, top_p_B1: torch.Tensor, draw_B1: torch.Tensor, *, width: int = NUCLEUS_WIDTH
) -> torch.Tensor:
    """Keep the most likely tokens up to and including the one that crosses top_p, as Meta's reference does.

    Looks at the `width` most likely tokens only, and at all for those rows whose nucleus may be wider.
    """
    vocab_size = probs_BV.shape[-1]
    top_BN, order_BN = probs_BV.topk(min(width, vocab_size), dim=-1)
    before_BN = top_BN.cumsum(-1, dtype=torch.float64) - top_BN
    kept_BN = top_BN.masked_fill(before_BN > top_p_B1, 0)
    picked_B = order_BN.gather(-1, _quantile(kept_BN, draw_B1)[:, None])[:, 0]
    is_wide_B = kept_BN[:, -1] > 0
    if width < vocab_size and is_wide_B.any():
        rows = is_wide_B.nonzero()[:, 0]
        picked_B[rows] = _nucleus_quantile(probs_BV[rows], top_p_B1[rows], draw_B1[rows], width=vocab_size)
    return picked_B


def _quantile(mass_BV: torch.Tensor, draw_B1: torch.Tensor) -> torch.Tensor:
    """Return the first id whose cumulated mass lies above the draw's share of the whole."""
    cumulated_BV = mass_BV.cumsum(-1, dtype=torch.float64)
    target_B1 = draw_B1 * cumulated_BV[:, -1:]
    return torch.searchsorted(cumulated_BV, target_B1, right=True)[:, 0].clamp(max=mass_BV.shape[-1] - 1)


def score_ids(logits_NV: torch.Tensor, ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Return each position's log-probability of its id, with the `num_top` most likely ids."""
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    ids_N1 = torch.tensor(ids, device=logits_NV.device)[:, None]
    chosen = logprobs_NV.gather(-1, ids_N1)[:, 0].tolist()
    top = logprobs_NV.topk(min(num_top, logits_NV.shape[-1]), dim=-1)
    return [
        TokenLogprob(token, logprob, tuple(zip(top_ids, top_logprobs, strict=True)))
        for token, logprob, top_ids, top_logprobs in zip(
            ids, chosen, top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]
