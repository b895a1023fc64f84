"""Settings that several compression stages share: dtypes of a measurement, separate texts to calibrate and measure."""

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
    """Raise ValueError if one path serves both as held-out data and as calibration text."""
    if {path.resolve() for path in data} & {path.resolve() for path in calibration}:
        raise ValueError("data and calibration name the same path: measure on other text than you calibrate on")
