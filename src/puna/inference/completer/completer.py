"""Completer: the interface for answers of a model, loaded in-process or behind an endpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from puna.formats.chat.conversation import Conversation, Message


class Prompt(NamedTuple):
    """A conversation before the assistant's answer, and the seed of the answer.

    Example:
        >>> Prompt(Conversation((Message("user", "Are you open?"),)), seed=7).seed
        7
    """

    conversation: Conversation
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of all prompts; temperature 0 takes the most likely token.

    `top_logprobs` is the number of alternatives beside the log-probability of every token; None for no
    log-probabilities.

    Example:
        >>> Sampling(max_tokens=64).temperature
        0.0
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    top_logprobs: int | None = None


class ReplyToken(NamedTuple):
    """A token of a reply as bytes, with log-probability and alternatives.

    Bytes are comparable between models with different tokenizers.

    Example:
        >>> ReplyToken(b" nine", -0.1, ((b" nine", -0.1), (b" ten", -2.4))).logprob
        -0.1
    """

    token: bytes
    logprob: float
    alternatives: tuple[tuple[bytes, float], ...] = ()


class Reply(NamedTuple):
    """The answer to a prompt, or the reason of a `failure`.

    The finish reason "length" marks an answer cut off at max_tokens. `logprobs` is None if the sampling settings ask
    for no log-probabilities, or the endpoint returns no log-probabilities.

    Example:
        >>> Reply(Message("assistant", "We open at"), 3, finish_reason="length").is_truncated
        True
    """

    message: Message = Message("assistant")
    num_tokens: int = 0
    failure: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    logprobs: tuple[ReplyToken, ...] | None = None

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


def ignore(_done: int) -> None:
    """Discard a progress report."""


class Completer(Protocol):
    """Answers conversations. An answer depends on the conversation, the sampling and the seed alone.

    Example:
        >>> model = LocalCompleter.open(Path("build/model"))
        >>> model.complete([Prompt(conversation)], Sampling(max_tokens=64))[0].message.content
        'We open at nine.'
    """

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, tell: Callable[[int], None] = ignore
    ) -> list[Reply]:
        """Answer every prompt, in the order given; `tell` receives the number of finished answers."""
        ...
