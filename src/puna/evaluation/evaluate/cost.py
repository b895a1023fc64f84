"""Checkpoints and tasks, also planned ones -> estimated number of questions, time and memory of an evaluation."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from puna.evaluation.tasks.next_turn_questions import recurring_names, turn_questions
from puna.evaluation.tasks.question import Question
from puna.evaluation.tasks.task import Task
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import LlamaConfig
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision
from puna.pipeline.estimate import Estimate, Known
from puna.planning.plan.arithmetic import FLOAT_BYTES
from puna.planning.plan.steps.facts import dataset_of, network_of, tokenizer_path
from puna.planning.plan.steps.overhead import PROCESS_BYTES, STAGE_SECONDS
from puna.planning.plan.steps.speed import PROBE_FLOPS, flops_of, probe_network, reduced, weight_seconds

# Tokens of a usual answer; largest number of measured prompts; number of questions below which the estimate warns.
ANSWER_TOKENS, MAX_SAMPLE, FEW_QUESTIONS = 40, 100, 100
# Requests of a probe, fewer requests for large models, and generated tokens per request.
REQUESTS, FEW_REQUESTS, WRITTEN = 8, 2, 8


def estimate_evaluation(
    known: Known,
    checkpoints: Mapping[str, Path],
    tasks: Sequence[Path],
    *,
    max_questions: int | None,
    max_tokens: int,
    precision: Precision,
) -> Estimate:
    """Estimate an evaluation: every checkpoint reads every question and writes an answer of usual length.

    The time of endpoints is unknown and counts 0.
    """
    samples = [_questions(known, task, max_questions) for task in tasks]
    count = sum(number for _, number in samples)
    if not checkpoints:
        return Estimate(note=f"{count:,} questions to endpoints, whose speed is not known")
    where = tokenizer_path(known, next(iter(checkpoints.values())))
    chat = ChatFormat(Tokenizer.load(where))
    lengths = [len(chat.prompt(each.conversation)) for questions, _ in samples for each in questions[:MAX_SAMPLE]]
    prompt_tokens = max(1, round(sum(lengths) / max(1, len(lengths))))
    seconds, largest = 0.0, 0
    for path in checkpoints.values():
        widths = network_of(known, path)
        reading, writing = answer_seconds(widths, min(prompt_tokens, widths.max_context // 2), precision, where)
        seconds += STAGE_SECONDS / 2 + weight_seconds(widths)
        seconds += count * (reading + writing * min(max_tokens, ANSWER_TOKENS))
        largest = max(largest, FLOAT_BYTES[precision] * widths.num_parameters)
    misfits = (_too_few(count),) if count < FEW_QUESTIONS else ()
    note = f"{count:,} questions of about {prompt_tokens:,} tokens, {len(checkpoints)} checkpoints"
    return Estimate(STAGE_SECONDS + seconds, PROCESS_BYTES + 2 * largest, None, misfits, note)


def _too_few(count: int) -> str:
    """Return a warning with the half width of the interval: 1.96 standard errors of a share of 0.5 (Wald)."""
    margin = 100 * 1.96 * 0.5 / math.sqrt(max(1, count))
    return f"{count:,} questions tell scores apart by about {margin:.0f} points at best; 400 do by 5: hold out more"


def _questions(known: Known, task: Path, max_questions: int | None) -> tuple[list[Question], int]:
    """Return a sample of a task's questions, and the number of all questions."""
    sketch = known.sketch(task)
    if sketch is None:
        questions = list(Task.load(task).questions)
        return questions, min(len(questions), max_questions or len(questions))
    questions = list(sketch.samples.get("questions", ()))
    count = sketch.num_rows.get("questions", 0)
    if not questions:
        dataset = dataset_of(known, [task], ("conversations",))
        rows = [dataset[index] for index in range(min(len(dataset), MAX_SAMPLE))]
        conversations = [row for row in rows if isinstance(row, Conversation)]
        names = recurring_names(conversations)
        questions = [question for each in conversations for question in turn_questions(each, names)]
        count = round(len(questions) * len(dataset) / len(rows))
    return questions, min(count, max_questions or count)


@cache
def answer_seconds(widths: LlamaConfig, prompt_tokens: int, precision: Precision, where: Path) -> tuple[float, float]:
    """Measure the seconds per prompt and per generated token, for concurrent requests in the engine."""
    small, _ = reduced(widths, (prompt_tokens,) * REQUESTS)
    is_large = flops_of(small, (prompt_tokens,) * REQUESTS) > 4 * PROBE_FLOPS
    count = FEW_REQUESTS if is_large else REQUESTS
    options = EngineOptions(max_batch=count, max_context=prompt_tokens + WRITTEN + 1, dtype=torch_dtype(precision))
    sampler = LocalSampler(probe_network(small, torch_dtype(precision)), Tokenizer.load(where), options=options)
    prompts = [[(7 * at + number) % small.vocab_size for at in range(prompt_tokens)] for number in range(count)]

    def seconds(max_tokens: int) -> float:
        start = time.perf_counter()
        sampler.complete(prompts, SamplingParams(max_tokens=max_tokens))
        return (time.perf_counter() - start) / count

    seconds(1)
    reading, both = seconds(1), seconds(1 + WRITTEN)
    scale = flops_of(widths, (prompt_tokens,)) / flops_of(small, (prompt_tokens,))
    return reading * scale, max(0.0, both - reading) / WRITTEN * scale
