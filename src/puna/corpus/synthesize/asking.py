"""Questions -> replies of a model, each with a seed of its own.

A reply depends on its question, its number and the seed alone, not on what is asked beside it. Judges nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Completer, Prompt, Sampling


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


@dataclass(frozen=True)
class Asker:
    """A model and how it is asked.

    Example:
        >>> asker = Asker(completer, Sampling(max_tokens=64), seed=0)
        >>> asker.reply([Ask(question, number=0)], lambda done: None)[0].failure
        ''
    """

    model: Completer
    sampling: Sampling
    seed: int

    def reply(self, asks: Sequence[Ask], tell: Callable[[int], None]) -> list[Reply]:
        """Ask each, in the order given. An answer that is cut off is a failure: it teaches nothing."""
        prompts = [Prompt(ask.question.conversation, ask.seed(self.seed)) for ask in asks]
        replies = self.model.complete(prompts, self.sampling, tell)
        cut_off = "cut off before its end"
        return [
            Reply(each.message, each.num_tokens, each.failure or (cut_off if each.is_truncated else ""))
            for each in replies
        ]
