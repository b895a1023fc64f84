"""A weight matrix and second moments of the inputs -> importance of every group of inputs.

Two criteria: the size of a group's contribution to the outputs, and the optimal brain surgeon (OBS; Hassibi and Stork,
1992; for groups, Kurtic et al. 2023, arXiv 2302.04089), which lets the remaining inputs compensate for a removed group.
Only OBS finds that one of two equal inputs is redundant. Nothing is removed here.

Shapes: O outputs, I inputs, G groups, S inputs of a group.
"""

import torch

from puna.conversion.compression.rounding import damped

DAMPING = 1e-4


def contributions(weight_OI: torch.Tensor, moments_II: torch.Tensor, groups_GS: torch.Tensor) -> torch.Tensor:
    """Return the mean square of the contribution of every group to the outputs; `moments_II` is the mean of x x^T.

    Example:
        >>> contributions(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([[0], [1]])).tolist()
        [1.0, 4.0]
    """
    parts_GOS = weight_OI.float()[:, groups_GS].transpose(0, 1)
    moments_GSS = moments_II[groups_GS[:, :, None], groups_GS[:, None, :]]
    return torch.einsum("gos,gst,got->g", parts_GOS, moments_GSS, parts_GOS)


def obs_losses(weight_OI: torch.Tensor, moments_II: torch.Tensor, groups_GS: torch.Tensor) -> torch.Tensor:
    """Remove the least important group, compensate with the remaining groups, and repeat.

    Returns:
        losses_G: for every group, the mean square error of the outputs once the group is removed.
    """
    inverse_II = torch.linalg.inv(damped(moments_II.double(), DAMPING))
    left_OI = weight_OI.double()
    losses_G, total = torch.full((len(groups_GS),), torch.inf, dtype=torch.float64), 0.0
    is_left_G = torch.ones(len(groups_GS), dtype=torch.bool)
    for _ in range(len(groups_GS)):
        numbers = is_left_G.nonzero().flatten()
        costs = _costs(left_OI, inverse_II, groups_GS[numbers])
        least = int(costs.argmin())
        group_S = groups_GS[numbers[least]]
        total += max(0.0, costs[least].item())
        losses_G[numbers[least]] = total
        is_left_G[numbers[least]] = False
        # OBS update of W and H^-1 for inputs that are constrained to zero.
        solved_SI = torch.linalg.solve(inverse_II[group_S[:, None], group_S], inverse_II[group_S])
        left_OI = left_OI - left_OI[:, group_S] @ solved_SI
        inverse_II = inverse_II - inverse_II[:, group_S] @ solved_SI
    return losses_G.float()


def _costs(left_OI: torch.Tensor, inverse_II: torch.Tensor, groups_GS: torch.Tensor) -> torch.Tensor:
    """Return the OBS saliency of every group: tr(W_S (H^-1_SS)^-1 W_S^T)."""
    if groups_GS.shape[1] == 1:
        inputs_G = groups_GS.flatten()
        return left_OI[:, inputs_G].square().sum(0) / inverse_II.diagonal()[inputs_G]
    parts_GSO = left_OI[:, groups_GS].permute(1, 2, 0)
    inverse_GSS = inverse_II[groups_GS[:, :, None], groups_GS[:, None, :]]
    return (parts_GSO * torch.linalg.solve(inverse_GSS, parts_GSO)).sum((1, 2))
