"""Cross entropy of the next token: the loss of pretraining and supervised fine-tuning.

Shapes: T tokens of a batch, C trained tokens of one chunk, D model width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.packing import Batch
from puna.model.llama import Llama
from puna.training.objectives.entropy import entropy_sum
from puna.training.objectives.losses import Rows, summed_over_tokens
from puna.training.objectives.text import TextObjective, trained_rows


@dataclass(frozen=True)
class NextToken(TextObjective):
    """Next-token cross entropy over every token, or over the assistant's messages.

    Example:
        >>> objective = NextToken(ChatFormat(tokenizer), reads_every_token=False, has_fresh_identifiers=False)
        >>> objective.losses(model, batch.hidden_states(model, torch.bfloat16), batch)["loss"]
    """

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return summed_over_tokens(model, hidden_TD[batch.trained_T], trained_rows(batch), _terms)


def _terms(logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
    """Return the summed loss and entropy of one chunk of targets."""
    loss = F.cross_entropy(logits_CV, rows["targets"], reduction="sum")
    return {"loss": loss, "entropy": entropy_sum(logits_CV)}
