"""Questions -> sampled replies of a model.

The random seed of a reply depends on the question's id, the attempt's number and the run's seed: batching has no
effect on a reply.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Completer, Prompt, Sampling


class Attempt(NamedTuple):
    """Attempt `number` at a question, one of `num_answers`.

    Example:
        >>> Attempt(question, number=1).seed(0) == Attempt(question, number=2).seed(0)
        False
    """

    question: Question
    number: int

    def seed(self, seed: int) -> int:
        """Return the sampling seed of the attempt (48 bits) for a run with `seed`."""
        identity = f"{seed} {self.question.id} {self.number}"
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big")


class Reply(NamedTuple):
    """Assistant message of a model; a non-empty `failure` is the reason why the message is unusable."""

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
class AnswerSampler:
    """A model with sampling parameters.

    Example:
        >>> sampler = AnswerSampler(completer, Sampling(max_tokens=64), seed=0)
        >>> sampler.reply([Attempt(question, number=0)], lambda done: None)[0].failure
        ''
    """

    model: Completer
    sampling: Sampling
    seed: int

    def reply(self, attempts: Sequence[Attempt], report: Callable[[int], None]) -> list[Reply]:
        """Sample a reply for every attempt, in the order of `attempts`; a truncated reply is a failure.

        Args:
            report: Called with the number of finished replies.
        """
        prompts = [Prompt(attempt.question.conversation, attempt.seed(self.seed)) for attempt in attempts]
        replies = self.model.complete(prompts, self.sampling, report)
        cut_off = "cut off before its end"
        return [
            Reply(reply.message, reply.num_tokens, reply.failure or (cut_off if reply.is_truncated else ""))
            for reply in replies
        ]
