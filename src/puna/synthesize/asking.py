"""Questions -> replies of a model, each with a seed of its own: in this process, or through an endpoint (endpoint.py).

A reply depends on its question, its number and the seed alone, not on what is asked beside it. Judges nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from puna.chat.conversation import Conversation, Message
from puna.chat.format import ChatFormat
from puna.checkpoint.checkpoint import Checkpoint
from puna.engine.local import LocalSampler
from puna.engine.options import EngineOptions
from puna.engine.sampler import Completion, SamplingParams
from puna.tasks.question import Question


class Ask(NamedTuple):
    """One of several times that a question is asked."""

    question: Question
    number: int

    def seed(self, seed: int) -> int:
        identity = f"{seed} {self.question.id} {self.number}"
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big")


class Reply(NamedTuple):
    """What came back; `failure` says why there is no answer, or none that can be used."""

    message: Message
    num_tokens: int = 0
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"answer": self.message.to_json(), "num_tokens": self.num_tokens, "failure": self.failure}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Reply":
        (message,) = Conversation.from_json({"messages": [row["answer"]]}).messages
        return cls(message, row["num_tokens"], row["failure"])


class Model(Protocol):
    """Whatever answers."""

    def reply(self, asks: Sequence[Ask], tell: Callable[[int], None]) -> list[Reply]:
        """Answer each, in the order given; `tell` hears how many are done."""
        ...


@dataclass(frozen=True)
class How:
    """How a model is asked."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint that answers in this process."""

    sampler: LocalSampler
    chat: ChatFormat
    stop_ids: tuple[int, ...]
    how: How

    @classmethod
    def open(cls, path: Path, how: How, *, max_batch: int, precision: str) -> "LocalModel":
        options = EngineOptions(max_batch=max_batch, dtype=getattr(torch, precision))
        sampler = LocalSampler.open(path, options=options)
        chat = ChatFormat(sampler.tokenizer)
        return cls(sampler, chat, tuple(dict.fromkeys(chat.stop_ids + Checkpoint.open(path).stop_ids)), how)

    def reply(self, asks: Sequence[Ask], tell: Callable[[int], None]) -> list[Reply]:
        prompts = [self.chat.prompt(ask.question.conversation) for ask in asks]
        fitting = [at for at, prompt in enumerate(prompts) if len(prompt) < self.sampler.max_context]
        params = [self._params(asks[at], len(prompts[at])) for at in fitting]
        completions = self.sampler.complete([prompts[at] for at in fitting], params, progress=tell)
        nothing = Message("assistant")
        replies = [Reply(nothing, failure="the prompt leaves no room for an answer")] * len(asks)
        for at, completion in zip(fitting, completions, strict=True):
            replies[at] = self._read(asks[at].question, completion)
        return replies

    def _params(self, ask: Ask, num_prompt_tokens: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=min(self.how.max_tokens, self.sampler.max_context - num_prompt_tokens),
            temperature=self.how.temperature,
            top_p=self.how.top_p,
            stop_ids=self.stop_ids,
            seed=ask.seed(self.how.seed),
        )

    def _read(self, question: Question, completion: Completion) -> Reply:
        message = self.chat.parse(completion.ids, question.conversation.tools)
        failures = {"error": f"the model failed: {completion.error}", "length": "cut off before its end"}
        return Reply(message, len(completion.ids), failures.get(completion.finish_reason, ""))
