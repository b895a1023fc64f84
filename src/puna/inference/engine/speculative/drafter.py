"""The interface of speculative decoding."""

from collections.abc import Sequence
from typing import Protocol

from puna.inference.engine.scheduling.request import Request


class Drafter(Protocol):
    """A source of draft tokens.

    Example:
        >>> PromptLookup().propose([request], limits=[4])
        [[271, 9, 13, 4]]
    """

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return at most `limits` draft tokens per request."""
        ...

    def release(self, request: Request) -> None:
        """Free the memory of an ended request."""
        ...
