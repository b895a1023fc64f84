"""A matrix and what flows into it -> how much each group of its inputs is needed.

By what a group adds to the outputs, or by what the outputs lose when the inputs that are left make up for it as well as
they can (optimal brain surgery: Hassibi and Stork, 1992; by groups, Kurtic et al. 2023, arXiv 2302.04089). Only the
latter sees that of two equal inputs one can go. Removes nothing.

Shapes: O outputs, I inputs, G groups, S inputs of a group.
"""

import torch

from puna.conversion.compression.rounding import damped

DAMPING = 1e-4


def contributions(weight_OI: torch.Tensor, moments_II: torch.Tensor, groups_GS: torch.Tensor) -> torch.Tensor:
    """Return the mean square of what each group adds to the outputs; `moments_II` is the mean of x x^T."""
    parts_GOS = weight_OI.float()[:, groups_GS].transpose(0, 1)
    moments_GSS = moments_II[groups_GS[:, :, None], groups_GS[:, None, :]]
    return torch.einsum("gos,gst,got->g", parts_GOS, moments_GSS, parts_GOS)


def obs_losses(weight_OI: torch.Tensor, moments_II: torch.Tensor, groups_GS: torch.Tensor) -> torch.Tensor:
    """Take out the least needed group, let the others make up for it, and so on; return for each group the mean square
    that the outputs have lost once it is gone."""
    inverse_II = torch.linalg.inv(damped(moments_II.double(), DAMPING))
    left_OI = weight_OI.double()
    losses_G, lost = torch.full((len(groups_GS),), torch.inf, dtype=torch.float64), 0.0
    is_left_G = torch.ones(len(groups_GS), dtype=torch.bool)
    for _ in range(len(groups_GS)):
        numbers = is_left_G.nonzero().flatten()
        costs = _costs(left_OI, inverse_II, groups_GS[numbers])
        least = int(costs.argmin())
        group_S = groups_GS[numbers[least]]
        lost += max(0.0, costs[least].item())
        losses_G[numbers[least]] = lost
        is_left_G[numbers[least]] = False
        # What is left of W and H^-1 once these inputs are bound to zero.
        solved_SI = torch.linalg.solve(inverse_II[group_S[:, None], group_S], inverse_II[group_S])
        left_OI = left_OI - left_OI[:, group_S] @ solved_SI
        inverse_II = inverse_II - inverse_II[:, group_S] @ solved_SI
    return losses_G.float()


def _costs(left_OI: torch.Tensor, inverse_II: torch.Tensor, groups_GS: torch.Tensor) -> torch.Tensor:
    """Return the least mean square that the outputs lose with each group: tr(W_S (H^-1_SS)^-1 W_S^T)."""
    if groups_GS.shape[1] == 1:
        inputs_G = groups_GS.flatten()
        return left_OI[:, inputs_G].square().sum(0) / inverse_II.diagonal()[inputs_G]
    parts_GSO = left_OI[:, groups_GS].permute(1, 2, 0)
    inverse_GSS = inverse_II[groups_GS[:, :, None], groups_GS[:, None, :]]
    return (parts_GSO * torch.linalg.solve(inverse_GSS, parts_GSO)).sum((1, 2))
