"""Names of floating-point formats in settings -> dtypes of torch."""

from typing import Literal

import torch

from puna.pipeline.config import Precision

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_dtype(precision: Precision | Literal["float16"]) -> torch.dtype:
    """Return the dtype of torch for a setting of type `Precision`, or for float16 in stored weights.

    Example:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    return _DTYPES[precision]
