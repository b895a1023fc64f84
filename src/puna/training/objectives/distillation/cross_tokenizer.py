"""The likelihood that a teacher with another tokenizer gives to spans of a text, mixed with cross entropy.

Token by token the two say nothing comparable. Where both have a boundary at the same bytes, each gives the span up to
the next common boundary a probability, by the chain rule over its own tokens: the student learns to give it the
teacher's. Source: approximate likelihood matching (Minixhofer et al., 2025, arXiv 2503.20083). What the teacher would
have said instead is not told, so this teaches how sure to be of the text, not what else is possible.

Shapes: T tokens of a batch, M trained tokens, S spans, N tokens of a row, D model width.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.dataset import LABELS, Dataset
from puna.data.labels import LabelledRow
from puna.data.packing import Batch, Example
from puna.data.spans import align
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.model.llama import Llama
from puna.pipeline.errors import DataError
from puna.training.objectives.losses import token_log_probabilities
from puna.training.objectives.next_token import NextToken
from puna.training.teacher.teacher import Item, Teacher

# Probabilities are kept this far from 1, where the log of what is left would have no end.
LEAST_REST = 1e-6
# Columns: which span of its row a token lies in (from 0; -1: in none), and what the teacher gives that span.
SPAN, KNOWN = "span", "span_log_probability"

# A teacher's tokens of a row and which are trained -> the log-probability of each; NaN where it is not known.
Knows = Callable[[Item], np.ndarray]


@dataclass(frozen=True)
class AcrossTokenizers(NextToken):
    """w * the sum over spans of KL(p || q), plus (1 - w) * cross entropy.

    p and q are the chances, of two outcomes, that the text goes on with this span, for teacher and student.
    """

    teacher_chat: ChatFormat
    knows: Knows
    teacher_weight: float

    @property
    def is_cut(self) -> bool:
        return False  # A span that is cut has no likelihood.

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        if isinstance(row, Conversation) and self.has_fresh_identifiers:
            row = fresh_identifiers(row, source)
        own, theirs = (
            NextToken(chat, self.is_every_token, False).encode(row, source)[0]
            for chat in (self.chat, self.teacher_chat)
        )
        known_N = self.knows(Item(row, theirs.ids, theirs.mask))  # type: ignore[arg-type]
        return [Example(own.ids, own.mask, self._columns(own, theirs, known_N))]

    def _columns(self, own: Example, theirs: Example, known_N: np.ndarray) -> dict[str, torch.Tensor]:
        spans = align(*(
            [chat.tokenizer.decode_bytes([token]) for token in example.ids]
            for chat, example in ((self.chat, own), (self.teacher_chat, theirs))
        ))  # fmt: skip
        span_N, log_N = torch.full((len(own.ids),), -1), torch.zeros(len(own.ids))
        num_spans = 0
        for span in spans:
            known = known_N[span.other_first : span.other_end].sum()
            if span.first and all(own.mask[span.first : span.end]) and not np.isnan(known):
                span_N[span.first : span.end], log_N[span.first : span.end] = num_spans, float(known)
                num_spans += 1
        return {SPAN: span_N, KNOWN: log_N}

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        trained_T = batch.trained_T
        tokens_M = token_log_probabilities(model, hidden_TD[trained_T], batch.targets_T[trained_T])
        spans_M, known_M = (batch.columns[name][trained_T] for name in (SPAN, KNOWN))
        is_known_M = spans_M >= 0
        # A span begins where its number differs from that of the token before: rows follow one another.
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
    """Return the sum over spans of the divergence of two outcomes: this span, or another text."""
    log_p_S, log_q_S = (x.clamp(max=-LEAST_REST) for x in (teacher_S, student_S))
    rest_p_S, rest_q_S = (-torch.expm1(x) for x in (log_p_S, log_q_S))
    return (log_p_S.exp() * (log_p_S - log_q_S) + rest_p_S * (rest_p_S.log() - rest_q_S.log())).sum()


def live_knowledge(teacher: Teacher) -> Knows:
    """Ask a teacher in memory, a row at a time."""

    def known(item: Item) -> np.ndarray:
        (labelled,) = teacher.label([item], lambda _: None)
        known_N = np.full(len(item.ids), np.nan)
        if labelled.labels is not None:
            known_N[np.flatnonzero(labelled.labels.mask_T[1:]) + 1] = labelled.labels.chosen_N
        return known_N

    return known


def stored_knowledge(labels: Dataset) -> Knows:
    """Look rows up among labels by the teacher's tokens."""
    places = {_row(labels, index).ids_T.tobytes(): index for index in range(len(labels))}

    def known(item: Item) -> np.ndarray:
        place = places.get(np.asarray(item.ids, np.int32).tobytes())
        if place is None:
            raise DataError("a row that the labels are not about", expected="the rows that stand beside the labels")
        row = _row(labels, place)
        known_N = np.full(len(item.ids), np.nan)
        known_N[np.flatnonzero(row.mask_T[1:]) + 1] = row.chosen_N
        return known_N

    return known


def _row(labels: Dataset, index: int) -> LabelledRow:
    row = labels[index]
    assert isinstance(row, LabelledRow), f"a dataset of the kind {LABELS}"
    return row
