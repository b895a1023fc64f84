"""The setting `device` -> the device of torch. All GPU detection happens here."""

from typing import Literal

import torch

from puna.pipeline.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: DeviceName = "auto") -> torch.device:
    """Return the CPU or the CUDA device of a name; "auto" prefers a GPU.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')

    Raises:
        ConfigError: The name is "cuda", and torch finds no GPU.
    """
    has_gpu = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError(
            "device = 'cuda'",
            expected="a GPU that torch finds (torch.cuda.is_available())",
            hint="Give device = 'auto' or 'cpu', or install a build of torch for CUDA and its driver",
        )
    return torch.device("cuda" if has_gpu else "cpu")
