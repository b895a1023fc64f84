"""Reward modelling as in the Llama 3 paper (arXiv 2407.21783, section 4.1.1).

The loss of a pair is -log sigmoid(score of the better answer - score of the worse answer), without a margin. The score
is computed at the last token of the answer.

Shapes: T tokens of a batch, N examples, P pairs, D model width.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.packing import Batch, Example
from puna.data.preference import Preference
from puna.model.llama import Llama
from puna.model.reward import scores
from puna.training.objectives.pairs import OUTRANKED, Pairs, constant, places


@dataclass(frozen=True)
class Reward(Pairs):
    """Pairwise ranking loss of a reward model.

    Example:
        >>> Reward(ChatFormat(tokenizer), frozenset({"better", "significantly better"}))
    """

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        assert isinstance(row, Preference)
        examples: list[Example] = []
        for answer, num_outranked in row.ranking(self.strengths):
            # The model reads every token but the last: a padding token makes it read the end of the answer.
            ids = [*self.chat.encode(row.answered(answer)).ids, self.chat.pad_id]
            mask = [False] * (len(ids) - 1) + [True]
            examples.append(Example(ids, mask, {OUTRANKED: constant(ids, num_outranked)}))
        return examples

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        return self.encode(row, source)

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        scores_N = scores(model, hidden_TD[batch.trained_T])
        better_P, worse_P = places(batch)
        margins_P = scores_N[better_P] - scores_N[worse_P]
        return {
            "loss": -F.logsigmoid(margins_P).sum(),
            "accuracy": (margins_P > 0).float().sum(),
            "margin": margins_P.sum(),
            "chosen_score": scores_N[better_P].sum(),
            "rejected_score": scores_N[worse_P].sum(),
        }
