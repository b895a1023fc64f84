"""Direct preference optimization as the Llama 3 paper does it (arXiv 2407.21783, 4.1.4).

Each pair costs -log sigmoid(beta * ((p - q)(better) - (p - q)(worse))), where p is the log-probability of an answer's
words and q that of the reference. Headers and ends of messages count in neither. Added is the mean negative
log-likelihood of the better answer's tokens, its ends among them: they keep the format that the rest doesn't see.

Shapes: T tokens of a batch, M trained tokens among them, N examples, P pairs, D model width.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.packing import Batch, Example
from puna.data.preference import Preference, Ranked
from puna.model.llama import Llama
from puna.training.objectives.losses import token_log_probabilities
from puna.training.objectives.pairs import OUTRANKED, Pairs, constant, first_of_each, places

# Columns: whether a token belongs to the words of the answer; the reference's log-probability of all of these.
IS_WORD, REFERENCE = "is_word", "reference"


@dataclass(frozen=True)
class Dpo(Pairs):
    """`references` holds what the reference gives each answer, by its `answer_key`."""

    references: Mapping[str, float]
    beta: float
    nll_weight: float

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        return [self._with_reference(example) for example in self.answers(row, source)]

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        return self.encode(row, source)

    def answers(self, row: object, source: random.Random) -> Sequence[Example]:
        """Encode a row without what the reference says of it."""
        assert isinstance(row, Preference)
        return [self._example(row, ranked) for ranked in row.ranking(self.strengths)]

    def _example(self, row: Preference, ranked: Ranked) -> Example:
        ids, mask = self.chat.encode(row.answered(ranked.answer))
        start = len(self.chat.prompt(row.prompt))
        is_trained = [at >= start and is_said for at, is_said in enumerate(mask)]
        is_word = [each and token not in self.chat.stop_ids for token, each in zip(ids, is_trained, strict=True)]
        columns = {IS_WORD: torch.tensor(is_word), OUTRANKED: constant(ids, ranked.num_outranked)}
        # The ends are learned of an answer that is better than another; nothing asks for those of the worst.
        return Example(ids, is_trained if ranked.num_outranked else is_word, columns)

    def _with_reference(self, example: Example) -> Example:
        key = answer_key(torch.tensor(example.ids[1:]), example.columns[IS_WORD][1:])
        # NOTE: what is longer than the context has no reference and is passed over; if it were not, NaN would stop it.
        reference = constant(example.ids, self.references.get(key, float("nan")))
        return Example(example.ids, example.mask, {**example.columns, REFERENCE: reference})

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        answers_N, likelihoods_N = log_probabilities(model, hidden_TD, batch)
        better_P, worse_P = places(batch)
        gains_N = self.beta * (answers_N - first_of_each(batch, REFERENCE))
        margins_P = gains_N[better_P] - gains_N[worse_P]
        dpo_loss, nll_loss = -F.logsigmoid(margins_P).sum(), -likelihoods_N[better_P].sum()
        return {
            "loss": dpo_loss + self.nll_weight * nll_loss,
            "dpo_loss": dpo_loss,
            "nll_loss": nll_loss,
            "accuracy": (margins_P > 0).float().sum(),
            "margin": margins_P.sum(),
            "chosen_log_probability": answers_N[better_P].sum(),
            "rejected_log_probability": answers_N[worse_P].sum(),
        }


def log_probabilities(model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each example, the log-probability of the answer's words and the mean over all its trained tokens."""
    targets_M = batch.targets_T[batch.trained_T]
    tokens_M = token_log_probabilities(model, hidden_TD[batch.trained_T], targets_M)
    lengths_N = torch.tensor(batch.lengths, device=tokens_M.device)
    examples_M = torch.repeat_interleave(torch.arange(len(lengths_N), device=tokens_M.device), lengths_N)[
        batch.trained_T
    ]
    zeros_N = tokens_M.new_zeros(len(lengths_N))
    answers_N = zeros_N.index_add(0, examples_M, tokens_M * batch.columns[IS_WORD][batch.trained_T])
    sums_N = zeros_N.index_add(0, examples_M, tokens_M)
    return answers_N, sums_N / torch.bincount(examples_M, minlength=len(lengths_N)).clamp(min=1)


def answer_keys(batch: Batch) -> list[str]:
    """Return the key of each example of a batch."""
    targets, words = (x.split(list(batch.lengths)) for x in (batch.targets_T, batch.columns[IS_WORD]))
    return [answer_key(*each) for each in zip(targets, words, strict=True)]


def answer_key(targets_T: torch.Tensor, is_word_T: torch.Tensor) -> str:
    """Name an answer to a prompt by the tokens of both."""
    content = targets_T.cpu().numpy().tobytes() + is_word_T.cpu().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:32]
