"""Batches -> numbers of trained tokens by kind, for later checks of the loss mask.

Shapes: T tokens of a batch.
"""

from collections.abc import Iterable

import torch

from puna.data.packing import Batch
from puna.formats.tokenizer.tokenizer import Tokenizer


class TokenCounter:
    """Counts trained tokens, ends of messages, and formatting (special tokens and white space).

    Example:
        >>> TokenCounter(tokenizer).count(batches)
        {'trained': 412, 'ends': 12, 'formatting': 40}
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._ends = torch.tensor(tokenizer.stop_ids)
        self._is_formatting: dict[int, bool] = {}

    def count(self, batches: Iterable[Batch]) -> dict[str, int]:
        """Return the counts of a step, named as in metrics.jsonl."""
        sums = {"trained": 0, "ends": 0, "formatting": 0}
        for batch in batches:
            ids, numbers = torch.unique(batch.targets_T[batch.trained_T].cpu(), return_counts=True)
            sums["trained"] += int(numbers.sum())
            sums["ends"] += int(numbers[torch.isin(ids, self._ends)].sum())
            known = [self._known(index) for index in ids.tolist()]
            sums["formatting"] += int(numbers[torch.tensor(known, dtype=torch.bool)].sum())
        return sums

    def _known(self, index: int) -> bool:
        if index not in self._is_formatting:
            is_special = self.tokenizer.is_special(index)
            self._is_formatting[index] = is_special or not self.tokenizer.decode_bytes([index]).strip()
        return self._is_formatting[index]
