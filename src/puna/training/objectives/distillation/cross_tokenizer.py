"""Distillation from a teacher with a different tokenizer: matching likelihoods of text spans, plus cross entropy.

Token distributions of two tokenizers are not comparable. Spans between common token boundaries are: the chain rule over
a model's own tokens gives the probability of a span. The student learns the teacher's probability of every span.
Source: approximate likelihood matching (Minixhofer et al., 2025, arXiv 2503.20083). The teacher's alternatives to the
text are unknown, so the student learns confidence in the text, not alternatives.

Shapes: T tokens of a batch, M trained tokens, S spans, N tokens of a row, D model width.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.dataset import LABELS, Dataset
from puna.data.document import Document
from puna.data.encode import encode_example
from puna.data.labels import LabelledRow
from puna.data.packing import Batch, Example
from puna.data.spans import align
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.model.llama import Llama
from puna.pipeline.errors import DataError
from puna.training.objectives.losses import token_log_probabilities
from puna.training.objectives.text import TextObjective
from puna.training.teacher.teacher import Item, Teacher

# Distance of probabilities from 1, where the log of the complement diverges.
LEAST_REST = 1e-6
# Columns: index of a token's span in its row (-1: none), and the teacher's log-probability of the span.
SPAN, KNOWN = "span", "span_log_probability"

# Teacher tokens of a row with mask -> log-probability of each token; NaN where unknown.
Knows = Callable[[Item], np.ndarray]


@dataclass(frozen=True)
class CrossTokenizer(TextObjective):
    """w * the sum over spans of KL(p || q), plus (1 - w) * cross entropy.

    p and q are the probabilities of a span for teacher and student, as distributions over two outcomes: the span, or
    a different text.

    Example:
        >>> CrossTokenizer(student_chat, False, False, teacher_chat, live_knowledge(teacher), teacher_weight=0.8)
    """

    teacher_chat: ChatFormat
    knows: Knows
    teacher_weight: float

    needs_whole_examples = True  # a span may cross the border between two ranks

    @property
    def is_cut(self) -> bool:
        return False  # a cut span has no likelihood

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        assert isinstance(row, Document | Conversation)
        if isinstance(row, Conversation) and self.has_fresh_identifiers:
            row = fresh_identifiers(row, source)
        student, teacher = (
            encode_example(row, chat, is_every_token=self.reads_every_token) for chat in (self.chat, self.teacher_chat)
        )
        known_N = self.knows(Item(row, teacher.ids, teacher.mask))
        return [Example(student.ids, student.mask, self._columns(student, teacher, known_N))]

    def _columns(self, student: Example, teacher: Example, known_N: np.ndarray) -> dict[str, torch.Tensor]:
        spans = align(*(
            [chat.tokenizer.decode_bytes([token]) for token in example.ids]
            for chat, example in ((self.chat, student), (self.teacher_chat, teacher))
        ))  # fmt: skip
        span_N, log_N = torch.full((len(student.ids),), -1), torch.zeros(len(student.ids))
        num_spans = 0
        for span in spans:
            log_probability = known_N[span.other_first : span.other_end].sum()
            if span.first and all(student.mask[span.first : span.end]) and not np.isnan(log_probability):
                span_N[span.first : span.end], log_N[span.first : span.end] = num_spans, float(log_probability)
                num_spans += 1
        return {SPAN: span_N, KNOWN: log_N}

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        trained_T = batch.trained_T
        tokens_M = token_log_probabilities(model, hidden_TD[trained_T], batch.targets_T[trained_T])
        spans_M, known_M = (batch.columns[name][trained_T] for name in (SPAN, KNOWN))
        is_known_M = spans_M >= 0
        # Spans of different rows get different names: indices restart in every row.
        rows_M = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))[trained_T.cpu()]
        names_M = rows_M.to(spans_M.device) * (int(spans_M.max()) + 2 if len(spans_M) else 1) + spans_M
        _, places_M = torch.unique(names_M[is_known_M], return_inverse=True)
        num_spans = int(places_M.max()) + 1 if len(places_M) else 0
        student_S = tokens_M.new_zeros(num_spans).index_add(0, places_M, tokens_M[is_known_M])
        teacher_S = tokens_M.new_zeros(num_spans).index_copy(0, places_M, known_M[is_known_M])
        divergence, token_loss = span_divergence(teacher_S, student_S), -tokens_M.sum()
        loss = self.teacher_weight * divergence + (1 - self.teacher_weight) * token_loss
        return {
            "loss": loss,
            "kl_loss": divergence,
            "token_loss": token_loss,
            "teacher_loss": -teacher_S.sum(),
            "aligned_share": is_known_M.float().sum(),
        }


def span_divergence(teacher_S: torch.Tensor, student_S: torch.Tensor) -> torch.Tensor:
    """Return the sum over spans of the KL divergence between two-outcome distributions."""
    log_p_S, log_q_S = (x.clamp(max=-LEAST_REST) for x in (teacher_S, student_S))
    rest_p_S, rest_q_S = (-torch.expm1(x) for x in (log_p_S, log_q_S))
    return (log_p_S.exp() * (log_p_S - log_q_S) + rest_p_S * (rest_p_S.log() - rest_q_S.log())).sum()


def live_knowledge(teacher: Teacher) -> Knows:
    """Return a function for log-probabilities by a teacher in memory, row by row."""

    def known(item: Item) -> np.ndarray:
        (labelled,) = teacher.label([item], lambda _: None)
        known_N = np.full(len(item.ids), np.nan)
        if labelled.labels is not None:
            known_N[np.flatnonzero(labelled.labels.mask_T[1:]) + 1] = labelled.labels.chosen_N
        return known_N

    return known


def stored_knowledge(labels: Dataset) -> Knows:
    """Return a function for looking up log-probabilities in stored labels by the teacher's tokens."""
    indices = {_row(labels, index).ids_T.tobytes(): index for index in range(len(labels))}

    def look_up(item: Item) -> np.ndarray:
        index = indices.get(np.asarray(item.ids, np.int32).tobytes())
        if index is None:
            raise DataError("a row without a label", expected="the rows of the label artifact")
        row = _row(labels, index)
        known_N = np.full(len(item.ids), np.nan)
        known_N[np.flatnonzero(row.mask_T[1:]) + 1] = row.chosen_N
        return known_N

    return look_up


def _row(labels: Dataset, index: int) -> LabelledRow:
    row = labels[index]
    assert isinstance(row, LabelledRow), f"a dataset of the kind {LABELS}"
    return row
