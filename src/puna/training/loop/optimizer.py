"""AdamW over a network's parameters, and its learning rate at each step."""

import math
from collections.abc import Iterator

import torch

from puna.model.llama import Llama
from puna.training.settings import Optim


def trained_parameters(model: Llama) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the parameters that training changes, with their names: all, or those of an adapter."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def make_optimizer(model: Llama, optim: Optim) -> torch.optim.AdamW:
    """Build AdamW that decays matrices and leaves norms alone."""
    parameters = [parameter for _, parameter in trained_parameters(model)]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    norms = [parameter for parameter in parameters if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


def learning_rate(optim: Optim, step: int, done: float) -> float:
    """Return the rate of `step` (from 0): linear warm-up by steps, cosine by the share of the run that is done."""
    warmup = min(1.0, (step + 1) / (optim.num_warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optim.lr * warmup * (optim.final_lr_share + (1 - optim.final_lr_share) * cosine)
