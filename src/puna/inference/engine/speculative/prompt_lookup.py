"""Draft tokens by n-gram lookup in the request's own text (prompt lookup decoding)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from puna.inference.engine.scheduling.request import Request

# Lengths of n-grams, the longest first.
GRAM_LENGTHS = (3, 2)


@dataclass(slots=True)
class _Grams:
    """Index of n-grams in a request's tokens: n-gram -> position after the last occurrence."""

    num_indexed: int = 0
    follower: dict[tuple[int, ...], int] = field(default_factory=dict)

    def index(self, tokens: list[int]) -> None:
        for end in range(max(self.num_indexed, 1), len(tokens)):
            for length in GRAM_LENGTHS:
                if length <= end:
                    self.follower[tuple(tokens[end - length : end])] = end
        self.num_indexed = len(tokens)


class PromptLookup:
    """Proposes the tokens after the last occurrence of the final n-gram; suits quotations, code and names.

    Example:
        >>> PromptLookup().propose([request], limits=[4])
        [[271, 9, 13, 4]]
    """

    def __init__(self) -> None:
        self._grams: dict[int, _Grams] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return the tokens after the last occurrence of each request's final n-gram."""
        return [self._draft(request, limit) for request, limit in zip(requests, limits, strict=True)]

    def release(self, request: Request) -> None:
        """Free the index of a request."""
        self._grams.pop(request.id, None)

    def _draft(self, request: Request, limit: int) -> list[int]:
        grams, tokens = self._grams.setdefault(request.id, _Grams()), request.tokens
        grams.index(tokens)
        positions = (grams.follower.get(tuple(tokens[-length:])) for length in GRAM_LENGTHS)
        at = next((position for position in positions if position is not None), None)
        return [] if at is None else tokens[at : at + limit]
