"""A Llama that writes -> one that scores: a single number from the hidden state of a text's last token.

The layout is transformers' LlamaForSequenceClassification with one label. What is scored, tasks/reward_model.py says.

Shapes: N texts, D model width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from puna.model.llama import Linear, Llama


def become_reward_model(model: Llama, seed: int) -> None:
    """Give the network a head that scores, in the place of the one that writes."""
    model.config = replace(model.config, is_reward=True, tie_embeddings=True)
    model.lm_head = None
    model.score = Linear(model.config.dim, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.02, generator=generator)
    model.score.to(model.device)


def scores(model: Llama, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Return the float32 scores_N of texts from the hidden states of their last tokens."""
    assert model.score is not None, "a reward model"
    return F.linear(hidden_ND.float(), model.score.weight.float())[:, 0]
