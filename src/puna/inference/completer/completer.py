"""Completer: the one interface through which a model answers conversations, wherever the model runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from puna.formats.chat.conversation import Conversation, Message


class Prompt(NamedTuple):
    """A conversation that waits for the assistant, and the seed of its answer.

    Example:
        >>> Prompt(Conversation((Message("user", "Are you open?"),)), seed=7).seed
        7
    """

    conversation: Conversation
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of all prompts; temperature 0 takes the most likely token.

    Example:
        >>> Sampling(max_tokens=64)
        Sampling(temperature=0.0, top_p=1.0, max_tokens=64)
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256


class Reply(NamedTuple):
    """The answer to one prompt. `failure` says why there is none; "length" as finish reason marks one cut off.

    Example:
        >>> Reply(Message("assistant", "We open at"), 3, finish_reason="length").is_truncated
        True
    """

    message: Message = Message("assistant")
    num_tokens: int = 0
    failure: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


def ignore(_done: int) -> None:
    """Take no notice of progress."""


class Completer(Protocol):
    """Answers conversations. An answer depends on its conversation, the sampling and the seed alone.

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
