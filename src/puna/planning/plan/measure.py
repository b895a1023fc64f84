"""This machine -> the measured FLOP/s of a matrix product, the basis of the times of `puna plan --hardware here`."""

import time

SECONDS, ROWS, WIDTH = 0.5, 512, 2048


def measured_flops() -> float:
    """Return the bfloat16 FLOP/s of a matrix product of a layer's size: the fastest run within half a second."""
    import torch

    x, weight = (torch.ones(rows, WIDTH, dtype=torch.bfloat16) for rows in (ROWS, WIDTH))
    best, end = float("inf"), time.perf_counter() + SECONDS
    with torch.inference_mode():
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - start)
    return 2 * ROWS * WIDTH * WIDTH / best
