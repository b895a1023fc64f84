"""A model -> the fastest runner on the machine."""

import torch

from puna.inference.engine.runners.native_runner import NativeRunner, native_kernels
from puna.inference.engine.runners.runner import Runner
from puna.inference.engine.runners.torch_runner import TorchRunner
from puna.model.llama import Llama


def open_runner(model: Llama, num_pages: int, dtype: torch.dtype, *, is_int8_cache: bool = False) -> Runner:
    """Return the runner for a model: compiled kernels where the machine and the model allow, else torch."""
    kernels = native_kernels(model, dtype)
    if kernels is not None:
        return NativeRunner(model, kernels, num_pages=num_pages, is_int8_cache=is_int8_cache)
    return TorchRunner(model, num_pages=num_pages, dtype=dtype, is_int8_cache=is_int8_cache)
