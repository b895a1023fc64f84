"""Rows of tokens -> rows padded to a multiple of TOKENS_STEP, to limit the number of distinct row counts.

On a CPU, oneDNN compiles one matrix-product kernel per distinct row count and caches a thousand kernels. Every kernel
takes milliseconds to compile and up to half a megabyte of memory.
"""

import torch
import torch.nn.functional as F

TOKENS_STEP = 128


def padded_rows(x_TD: torch.Tensor) -> torch.Tensor:
    """Return the rows, zero-padded at the end to a multiple of TOKENS_STEP.

    Example:
        >>> padded_rows(torch.ones(100, 8)).shape
        torch.Size([128, 8])
    """
    return F.pad(x_TD, (0, 0, 0, -len(x_TD) % TOKENS_STEP))
