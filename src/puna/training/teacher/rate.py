"""Sizes of a teacher -> labelling rate in tokens per second on the machine, measured on a reduced network."""

import time
from functools import cache

from puna.formats.chat.conversation import Conversation
from puna.model.config import LlamaConfig
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision
from puna.planning.plan.steps.speed import flops_of, probe_network, reduced
from puna.training.teacher.local import CHUNK_VALUES, LocalTeacher
from puna.training.teacher.teacher import Item

# Bytes of logits, exponentials and sorted values, in float32.
LOGITS_BYTES = 3 * 4 * CHUNK_VALUES
LENGTHS = (256,) * 8


@cache
def reading_rate(widths: LlamaConfig, precision: Precision, top_k: int) -> float:
    """Return tokens read per second by a teacher in memory, with labels for half of the tokens."""
    small, lengths = reduced(widths, LENGTHS)
    teacher = LocalTeacher(
        probe_network(small, torch_dtype(precision)),
        None,
        dtype=torch_dtype(precision),
        top_k=min(top_k, small.vocab_size),
        temperature=1.0,
        context=max(lengths),
        batch_tokens=sum(lengths),
    )
    rows = [
        Item(Conversation(()), [token % small.vocab_size for token in range(length + 1)], _second_half(length))
        for length in lengths
    ]
    teacher.label(rows, lambda _: None)
    start = time.perf_counter()
    teacher.label(rows, lambda _: None)
    seconds = (time.perf_counter() - start) * flops_of(widths, lengths) / flops_of(small, lengths)
    return sum(lengths) / seconds


def _second_half(length: int) -> list[bool]:
    return [at > length // 2 for at in range(length + 1)]
