"""Draft tokens from the request's own text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from puna.inference.engine.scheduling.request import Request

# How many tokens that have been together before make it likely that they go on alike.
GRAM_LENGTHS = (3, 2)


@dataclass(slots=True)
class _Grams:
    """Where in a request's tokens each gram was followed, the last time."""

    num_indexed: int = 0
    follower: dict[tuple[int, ...], int] = field(default_factory=dict)

    def index(self, tokens: list[int]) -> None:
        for end in range(max(self.num_indexed, 1), len(tokens)):
            for length in GRAM_LENGTHS:
                if length <= end:
                    self.follower[tuple(tokens[end - length : end])] = end
        self.num_indexed = len(tokens)


class PromptLookup:
    """Guess that what followed the last two or three tokens before follows them again: quotations, code, names."""

    def __init__(self) -> None:
        self._grams: dict[int, _Grams] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return what stands behind the last place where a request's last tokens stood."""
        return [self._guess(request, limit) for request, limit in zip(requests, limits, strict=True)]

    def release(self, request: Request) -> None:
        """Drop the index of a request."""
        self._grams.pop(request.id, None)

    def _guess(self, request: Request, limit: int) -> list[int]:
        grams, tokens = self._grams.setdefault(request.id, _Grams()), request.tokens
        grams.index(tokens)
        places = (grams.follower.get(tuple(tokens[-length:])) for length in GRAM_LENGTHS)
        at = next((place for place in places if place is not None), None)
        return [] if at is None else tokens[at : at + limit]
