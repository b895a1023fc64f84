"""The operations of the network with hand-written backward passes: autograd's gradients up to rounding, in less memory.

Autograd stores the input of every operation. Here float32 copies in norms, the SiLU of a gate and weights rounded to
bfloat16 are recomputed instead of stored. Without gradients an operation is only the formula.

Shapes: T tokens, D input width, N hidden width of an MLP, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def linear(x_TD: torch.Tensor, weight_OD: torch.Tensor) -> torch.Tensor:
    """Return x W^T in the dtype of x; the weight may have a different dtype."""
    if torch.is_grad_enabled() and weight_OD.requires_grad and weight_OD.dtype != x_TD.dtype:
        return _RoundedLinear.apply(x_TD, weight_OD)  # type: ignore[return-value]
    return F.linear(x_TD, weight_OD.to(x_TD.dtype))


class _RoundedLinear(torch.autograd.Function):
    """A product: saves the stored weight for the backward pass, not the rounded copy."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, weight_OD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_TD, weight_OD)
        return linear(x_TD, weight_OD)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (out_TO,) = gradients
        x_TD, weight_OD = ctx.saved_tensors
        x = out_TO @ weight_OD.to(out_TO.dtype) if ctx.needs_input_grad[0] else None
        weight = (out_TO.T @ x_TD).to(weight_OD.dtype)
        return x, weight


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalize in float32, cast back, then scale: Llama's order."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[return-value]
    return F.rms_norm(x_TD, (x_TD.shape[-1],), eps=eps) * weight_D.to(x_TD.dtype)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm: saves only the input, already held by the residual stream."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        return rms_norm(x_TD, weight_D, eps)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (out_TD,) = gradients
        x_TD, weight_D = ctx.saved_tensors
        length_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_T1 = (length_T1.square_() / x_TD.shape[-1] + ctx.eps).rsqrt_()
        normal_TD = x_TD * inverse_T1
        weight = (out_TD * normal_TD).sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        x = out_TD * weight_D.float()
        x.addcmul_(normal_TD, (x * normal_TD).mean(-1, keepdim=True), value=-1).mul_(inverse_T1)
        return x.to(x_TD.dtype), weight, None


def swiglu(gate_TN: torch.Tensor, up_TN: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(gate_TN, up_TN)  # type: ignore[return-value]
    return F.silu(gate_TN) * up_TN


class _SwiGLU(torch.autograd.Function):
    """SwiGLU: saves the two inputs, but not the SiLU."""

    @staticmethod
    def forward(ctx: Any, gate_TN: torch.Tensor, up_TN: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_TN, up_TN)
        return swiglu(gate_TN, up_TN)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (out_TN,) = gradients
        gate_TN, up_TN = ctx.saved_tensors
        gate = torch.ops.aten.silu_backward(out_TN * up_TN, gate_TN)
        return gate, F.silu(gate_TN).mul_(out_TN)
