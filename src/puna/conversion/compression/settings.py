"""A check shared by compression stages: calibration and measurement read different texts."""

from collections.abc import Iterable
from pathlib import Path


def require_separate_texts(data: Iterable[Path], calibration: Iterable[Path]) -> None:
    """Raise ValueError if a path serves as held-out data and as calibration text."""
    if {path.resolve() for path in data} & {path.resolve() for path in calibration}:
        raise ValueError("data and calibration name the same path: measure on other text than you calibrate on")
