"""Direct preference optimization as the Llama 3 paper does it (arXiv 2407.21783, 4.1.4).

The loss of a pair is -log sigmoid(beta * ((p - q)(better) - (p - q)(worse))). p is the log-probability of an answer's
words under the trained model, q under the reference; headers and ends of messages are left out. The mean negative
log-likelihood of the better answer, including ends of messages, is added with weight nll_weight: this term preserves
the chat format.

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

# Columns: whether a token is a word of the answer; the log-probability of all words under the reference.
IS_WORD, REFERENCE = "is_word", "reference"


@dataclass(frozen=True)
class Dpo(Pairs):
    """DPO loss over the pairs of a batch.

    Attributes:
        references: Log-probability of each answer under the reference model, by `answer_key`.
        beta: Strength of the KL penalty to the reference.
        nll_weight: Weight of the negative log-likelihood of the better answer.

    Example:
        >>> Dpo(ChatFormat(tokenizer), frozenset({"better"}), {}, beta=0.1, nll_weight=0.2)
    """

    references: Mapping[str, float]
    beta: float
    nll_weight: float

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        return [self._with_reference(example) for example in self.answers(row, source)]

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        return self.encode(row, source)

    def answers(self, row: object, source: random.Random) -> Sequence[Example]:
        """Encode the answers of a row without the column of the reference."""
        assert isinstance(row, Preference)
        return [self._example(row, ranked) for ranked in row.ranking(self.strengths)]

    def _example(self, row: Preference, ranked: Ranked) -> Example:
        ids, mask = self.chat.encode(row.answered(ranked.answer))
        start = len(self.chat.prompt(row.prompt))
        is_trained = [at >= start and is_said for at, is_said in enumerate(mask)]
        is_word = [each and token not in self.chat.stop_ids for token, each in zip(ids, is_trained, strict=True)]
        columns = {IS_WORD: torch.tensor(is_word), OUTRANKED: constant(ids, ranked.num_outranked)}
        # Ends of messages are targets in better answers alone: the likelihood term does not cover the worst answer.
        return Example(ids, is_trained if ranked.num_outranked else is_word, columns)

    def _with_reference(self, example: Example) -> Example:
        key = answer_key(torch.tensor(example.ids[1:]), example.columns[IS_WORD][1:])
        # NOTE: an answer longer than max_length has no reference and is skipped; NaN would stop the run otherwise.
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
    """Return two values per example: summed log-probability of the answer's words, mean over all trained tokens."""
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
    """Return the `answer_key` of each example in a batch."""
    targets, words = (x.split(list(batch.lengths)) for x in (batch.targets_T, batch.columns[IS_WORD]))
    return [answer_key(*each) for each in zip(targets, words, strict=True)]


def answer_key(targets_T: torch.Tensor, is_word_T: torch.Tensor) -> str:
    """Return a hash of the tokens of prompt and answer."""
    content = targets_T.cpu().numpy().tobytes() + is_word_T.cpu().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:32]
