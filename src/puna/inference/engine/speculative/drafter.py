"""The interface of everything that proposes draft tokens."""

from collections.abc import Sequence
from typing import Protocol

from puna.inference.engine.scheduling.request import Request


class Drafter(Protocol):
    """Guesses the next tokens of requests."""

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return at most so many guesses for each."""
        ...

    def release(self, request: Request) -> None:
        """Give back what is held for a request that has ended."""
        ...
