"""A float matrix -> integers and scales: rounding to the nearest value, or GPTQ with compensation in later columns.

GPTQ: Frantar et al. (2022), arXiv 2210.17323. Columns are rounded in descending order of the Hessian's diagonal
(act-order) with static scales of the groups, so that the stored order of columns stays. calibrate.py applies GPTQ to
a model.

Shapes: O outputs, I inputs, G groups of a row, C columns of a block.
"""

import torch

from puna.model.quantization.quantized import (
    QuantizedLinear,
    expand_scale,
    pack_weight,
    round_scale,
    round_values,
    widest_scale,
)
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import CheckpointError

# Candidate scales for 4 bits, as shares of the widest scale: clipping outliers makes the steps finer.
SHARES = [1.0 - 0.02 * step for step in range(21)]
ROWS = 1024
DAMPING = 0.01
BLOCK = 128


def best_scale(weight_OI: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return scale_OG with the smallest squared error; weighting by input sizes did not improve GPTQ."""
    widest_OG = widest_scale(weight_OI, scheme)
    if scheme.bits == 8:  # steps are fine; clipping costs more
        return widest_OG
    parts = zip(weight_OI.split(ROWS), widest_OG.split(ROWS), strict=True)
    return torch.cat([_best_scale(weight, widest, scheme) for weight, widest in parts])


def _best_scale(weight_OI: torch.Tensor, widest_OG: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    weight_OGI = weight_OI.unflatten(1, (widest_OG.shape[1], -1))
    best_OG, smallest_OG = widest_OG, torch.full_like(widest_OG, torch.inf)
    for share in SHARES:
        scale_OG = round_scale(widest_OG * share)
        scale_OG1 = scale_OG[..., None]
        error_OG = (round_values(weight_OGI, scale_OG1, scheme) * scale_OG1 - weight_OGI).square_().sum(-1)
        best_OG = torch.where(error_OG < smallest_OG, scale_OG, best_OG)
        smallest_OG = torch.minimum(error_OG, smallest_OG)
    return best_OG


def nearest(weight_OI: torch.Tensor, scheme: Scheme) -> QuantizedLinear:
    """Round every weight to the nearest multiple of the best scale.

    Example:
        >>> nearest(torch.randn(4, 32), Scheme("int", 4, 32)).scheme.bits
        4
    """
    weight_OI = weight_OI.detach().float()
    scale_OG = best_scale(weight_OI, scheme)
    values_OI = round_values(weight_OI, expand_scale(scale_OG, weight_OI.shape[1]), scheme)
    return QuantizedLinear(*pack_weight(values_OI, scale_OG, scheme), scheme, weight_OI.shape[1])


def gptq(weight_OI: torch.Tensor, hessian_II: torch.Tensor, scheme: Scheme) -> QuantizedLinear:
    """Round with GPTQ: minimize the squared error of the outputs on calibration tokens.

    Args:
        hessian_II: Sum of x x^T over the inputs x of all calibration tokens; GPTQ computes in the dtype of the Hessian.
    """
    weight_OI = weight_OI.detach().float()
    scale_OG = best_scale(weight_OI, scheme)
    order_I = hessian_II.diagonal().argsort(descending=True)
    scale_OI = expand_scale(scale_OG, weight_OI.shape[1])[:, order_I].to(hessian_II.dtype)
    root_II = _inverse_root(hessian_II[order_I][:, order_I])
    left_OI = weight_OI[:, order_I].to(hessian_II.dtype)
    values_OI = torch.empty_like(left_OI, dtype=torch.int8)
    for start in range(0, left_OI.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        values_OI[:, columns], errors_OC = _round_block(
            left_OI[:, columns], scale_OI[:, columns], root_II[columns, columns], scheme
        )
        left_OI[:, start + BLOCK :] -= errors_OC @ root_II[columns, start + BLOCK :]
    values_OI = values_OI[:, order_I.argsort()]
    return QuantizedLinear(*pack_weight(values_OI, scale_OG, scheme), scheme, weight_OI.shape[1])


def _round_block(
    left_OC: torch.Tensor, scale_OC: torch.Tensor, root_CC: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a block column by column; return integers and rounding errors divided by the root's diagonal."""
    values_OC, errors_OC = torch.empty_like(left_OC, dtype=torch.int8), torch.empty_like(left_OC)
    for column in range(left_OC.shape[1]):
        left_O, scale_O = left_OC[:, column], scale_OC[:, column]
        values_OC[:, column] = round_values(left_O, scale_O, scheme)
        errors_OC[:, column] = (left_O - values_OC[:, column] * scale_O) / root_CC[column, column]
        left_OC[:, column + 1 :] -= errors_OC[:, column, None] * root_CC[column, column + 1 :]
    return values_OC, errors_OC


def damped(hessian_II: torch.Tensor, share: float = DAMPING) -> torch.Tensor:
    """Return H + share * mean(diag H) * I, with a diagonal of 1 for inputs that are always zero."""
    diagonal_I = hessian_II.diagonal()
    added_I = torch.where(diagonal_I > 0, share * diagonal_I.mean(), 1.0)
    return hessian_II + added_I.diag()


def _inverse_root(hessian_II: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with U^T U = H^-1; damping grows until a Cholesky factor exists."""
    share = DAMPING
    while share < 1e6:
        lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II, share))
        if not failed:
            root_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if not failed:
                return root_II
        share *= 10
    raise CheckpointError(
        "calibration gives a Hessian without an inverse", expected="finite activations in every layer"
    )
