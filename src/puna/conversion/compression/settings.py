"""Settings shared by compression stages: dtype of a measurement, separate texts to calibrate and to measure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the torch dtype with the name `precision`.

    Example:
        >>> dtype_of("bfloat16")
        torch.bfloat16
    """
    return getattr(torch, precision)


def require_separate_texts(data: Iterable[Path], calibration: Iterable[Path]) -> None:
    """Raise ValueError if a path serves as held-out data and as calibration text."""
    if {path.resolve() for path in data} & {path.resolve() for path in calibration}:
        raise ValueError("data and calibration name the same path: measure on other text than you calibrate on")
