"""A checkpoint and questions -> replies, with the time and the tokens that they took. Judges nothing.

The checkpoint is asked in the format that it was trained in, by the sampler that would serve it.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna.chat.conversation import Conversation, Message
from puna.chat.format import ChatFormat
from puna.checkpoint.adapter import checkpoint_at
from puna.checkpoint.checkpoint import Checkpoint
from puna.engine.local import LocalSampler
from puna.engine.options import EngineOptions
from puna.engine.sampler import Completion, SamplingParams
from puna.evaluate.grading import Item
from puna.run import Run
from puna.tasks.question import Question


class Reply(NamedTuple):
    """The answer to one question; `failure` says why there is none."""

    message: Message = Message("assistant")
    num_tokens: int = 0
    finish_reason: str = ""
    failure: str = ""

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "message": self.message.to_json()}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Reply":
        (message,) = Conversation.from_json({"messages": [row["message"]]}).messages
        return cls(**{**row, "message": message})


class Asked(NamedTuple):
    """The replies of one checkpoint in the order of the questions; the time of its weights' loading is left out."""

    replies: list[Reply]
    num_prompt_tokens: int
    seconds: float


@dataclass(frozen=True)
class How:
    """How a checkpoint is asked: sampling and engine."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    max_batch: int
    dtype: torch.dtype
    is_int8_cache: bool

    def params(self, item: Item, room: int, stop_ids: tuple[int, ...]) -> SamplingParams:
        """Seed each question by its id: every checkpoint is asked alike, whatever else is asked."""
        identity = f"{self.seed} {item.task.name} {item.question.id}"
        return SamplingParams(
            max_tokens=min(self.max_tokens, room),
            temperature=self.temperature,
            top_p=self.top_p,
            stop_ids=stop_ids,
            seed=int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big"),
        )


def ask(how: How, run: Run, name: str, path: Path, items: Sequence[Item]) -> Asked:
    """Let one checkpoint answer all questions."""
    options = EngineOptions(max_batch=how.max_batch, dtype=how.dtype, is_int8_cache=how.is_int8_cache)
    sampler = LocalSampler.open(path, options=options)
    chat = ChatFormat(sampler.tokenizer)
    prompts = [chat.prompt(item.question.conversation) for item in items]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < sampler.max_context]
    stop_ids = tuple(dict.fromkeys(chat.stop_ids + Checkpoint.open(checkpoint_at(path)).stop_ids))
    params = [how.params(items[i], sampler.max_context - len(prompts[i]), stop_ids) for i in fitting]
    # The first request pays for what later ones find ready; it is no part of the speed.
    sampler.complete(
        [prompts[i] for i in fitting[:1]], [replace(p, max_tokens=min(2, p.max_tokens)) for p in params[:1]]
    )
    start = time.monotonic()
    with run.progress(len(items), name, unit="questions", done=len(items) - len(fitting)) as bar:
        completions = sampler.complete(
            [prompts[i] for i in fitting], params, progress=lambda done: bar.advance(bar.first + done - bar.count)
        )
    seconds = time.monotonic() - start
    replies = [Reply(failure=f"the prompt of {len(p)} tokens leaves no room for an answer") for p in prompts]
    for index, completion in zip(fitting, completions, strict=True):
        replies[index] = _read(chat, items[index].question, completion)
    return Asked(replies, sum(len(prompts[i]) for i in fitting), seconds)


def _read(chat: ChatFormat, question: Question, completion: Completion) -> Reply:
    if completion.finish_reason == "error":
        return Reply(finish_reason="error", failure=f"the model failed: {completion.error}")
    message = chat.parse(completion.ids, question.conversation.tools)
    return Reply(message, len(completion.ids), completion.finish_reason)
