"""Drafts: guesses at what comes next, which the network checks in one step; what it would not have chosen is dropped.

A guess is right if it is the very token that would have been chosen: the most likely one or, when sampling, the one at
the request's own draw. So a draft changes no token of any request, whatever its seed, only how many steps they take.

Shapes: B requests, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.cache.paged_cache import PagePool, num_pages_for
from puna.inference.engine.runners.runner import Runner
from puna.inference.engine.sampling.sampler import Row, choose, of_tokens
from puna.inference.engine.scheduling.request import Request
from puna.model.kernels.native import Span

# How likely a network has to find all its guesses so far to go on, where the most likely tokens are chosen. Where
# tokens are drawn, its draws are right as often as it agrees with the other network, however likely each token is.
LEAST_CERTAINTY = 0.7
# Tokens that a draft's network reads at once.
PIECE = 2048


@dataclass(slots=True)
class _Reading:
    """What the draft's network has read of a request: `read` tokens stand in `table`, the first `num_sure` for good."""

    row: Row
    table: "array[int]" = field(default_factory=lambda: array("i"))
    read: list[int] = field(default_factory=list)
    num_sure: int = 0

    def settle(self, tokens: list[int]) -> None:
        """Forget what was read and has turned out otherwise."""
        most = min(len(self.read), len(tokens) - 1)
        while self.num_sure < most and self.read[self.num_sure] == tokens[self.num_sure]:
            self.num_sure += 1
        del self.read[self.num_sure :]


class ModelDrafter:
    """A small network of the same vocabulary guesses, by its most likely tokens or at the request's own draws."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, *, num_pages: int):
        self._runner, self._tokenizer, self._pool = runner, tokenizer, PagePool(num_pages)
        self._readings: dict[int, _Reading] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return the network's own continuations; none for a request that there is no room for."""
        drafts: list[list[int]] = [[] for _ in requests]
        readings = [self._reading(request) for request in requests]
        draws = [request.row.upcoming(limit) for request, limit in zip(requests, limits, strict=True)]
        certainty = [1.0] * len(requests)
        for depth in range(max(limits, default=0)):
            places = [
                place
                for place, (request, limit) in enumerate(zip(requests, limits, strict=True))
                if depth < limit
                and len(drafts[place]) == depth
                and certainty[place] >= LEAST_CERTAINTY
                and self._make_room(readings[place], len(request.tokens) + depth)
            ]
            if not places:
                break
            pending = [[*requests[at].tokens, *drafts[at]][len(readings[at].read) :] for at in places]
            logits_BV = self._read([readings[at] for at in places], pending)
            for at in places:
                readings[at].row.draw = draws[at][depth]
            tokens = choose(logits_BV, [readings[at].row for at in places])
            for at, token, share in zip(places, tokens, _probabilities(logits_BV, tokens), strict=True):
                drafts[at].append(token)
                if readings[at].row.is_greedy:
                    certainty[at] *= share
        return drafts

    def forget(self, request: Request) -> None:
        """Give back a request's pages."""
        reading = self._readings.pop(request.id, None)
        for page in reading.table if reading else ():
            self._pool.release(page)

    def _reading(self, request: Request) -> _Reading:
        if request.id not in self._readings:
            # Penalties and grammars are left to the check: a guess need not be right.
            plain = replace(
                request.params, grammar=None, logit_bias=(), banned_ids=(),
                repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0,
            )  # fmt: skip
            self._readings[request.id] = _Reading(Row((), plain))
        reading = self._readings[request.id]
        reading.settle(request.tokens)
        return reading

    def _make_room(self, reading: _Reading, num_tokens: int) -> bool:
        while len(reading.table) < num_pages_for(num_tokens):
            page = self._pool.take()
            if page is None:
                return False
            reading.table.append(page)
        return True

    def _read(self, readings: list[_Reading], pending: list[list[int]]) -> torch.Tensor:
        """Read what is pending of each; return the logits_BV behind the last tokens."""
        for reading, tokens in zip(readings, pending, strict=True):
            while len(tokens) > PIECE:
                self._runner.forward(tokens[:PIECE], [Span(reading.table, len(reading.read), PIECE)], [])
                reading.read += tokens[:PIECE]
                del tokens[:PIECE]
        spans = [Span(each.table, len(each.read), len(tokens)) for each, tokens in zip(readings, pending, strict=True)]
        ends, total = [], 0
        for reading, tokens in zip(readings, pending, strict=True):
            reading.read += tokens
            total += len(tokens)
            ends.append(total - 1)
        hidden_BD = self._runner.forward([token for tokens in pending for token in tokens], spans, ends)
        return of_tokens(self._runner.logits(hidden_BD), self._tokenizer)


def _probabilities(logits_BV: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    chosen_B = logits_BV[torch.arange(len(tokens)), torch.tensor(tokens)]
    return (chosen_B - logits_BV.logsumexp(-1)).exp().tolist()
