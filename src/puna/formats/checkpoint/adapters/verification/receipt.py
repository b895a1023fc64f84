"""A comparison of base and adapter side by side with the merged model -> the receipt of the largest difference.

A mean over 128,256 tokens hides a single wrong row of the head; the largest difference shows the row.
"""

from typing import Any

import torch

from puna.model.compare import Comparison
from puna.pipeline.artifacts.artifact import Receipt

# Greatest difference of a log-probability that rounding gives, in standard deviations of the logits: two to ten times
# what was measured on random models and the demo teacher (docs/stages/merge.md).
OF_WEIGHTS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
OF_COMPUTING = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


def difference_receipt(
    comparison: Comparison, parent: str, *, written: torch.dtype, computed: torch.dtype, details: dict[str, Any]
) -> Receipt:
    """Return the receipt: no log-probability differs by more than the rounding error.

    Args:
        comparison: Base and adapter side by side, against the merged model.
        parent: Names of adapter and base.
        written: Dtype of the merged weights.
        computed: Dtype of the activations in the two models.
        details: Figures to keep with the receipt.
    """
    limit = max(OF_WEIGHTS[written], OF_COMPUTING[computed])
    largest = comparison.max_difference() / max(comparison.deviation(), torch.finfo(torch.float32).tiny)
    measured = {"unit": "greatest difference of a log-probability / standard deviation of the logits"} | details
    return Receipt("largest_difference", parent, largest, limit, largest <= limit, measured)
