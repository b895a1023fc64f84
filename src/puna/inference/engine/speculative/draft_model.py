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
from puna.inference.engine.runners.runner import Runner, Span
from puna.inference.engine.sampling.sampler import SamplingState, sample, trim_padded_vocabulary
from puna.inference.engine.scheduling.request import Request

# How likely a network has to find all its guesses so far to go on, where the most likely tokens are chosen. Where
# tokens are drawn, its draws are right as often as it agrees with the other network, however likely each token is.
LEAST_CERTAINTY = 0.7
# Tokens that a draft's network reads at once.
PIECE = 2048


@dataclass(slots=True)
class _DraftState:
    """Tokens of a request in the draft model's cache; the target model has verified the first `num_verified`."""

    sampling: SamplingState
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    tokens: list[int] = field(default_factory=list)
    num_verified: int = 0

    def rewind(self, tokens: list[int]) -> None:
        """Forget what was read and has turned out otherwise."""
        most = min(len(self.tokens), len(tokens) - 1)
        while self.num_verified < most and self.tokens[self.num_verified] == tokens[self.num_verified]:
            self.num_verified += 1
        del self.tokens[self.num_verified :]


class ModelDrafter:
    """A small network of the same vocabulary guesses, by its most likely tokens or at the request's own draws."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, *, num_pages: int):
        self._runner, self._tokenizer, self._pool = runner, tokenizer, PagePool(num_pages)
        self._states: dict[int, _DraftState] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return the network's own continuations; none for a request that there is no room for."""
        drafts: list[list[int]] = [[] for _ in requests]
        states = [self._state(request) for request in requests]
        draws = [request.sampling.next_uniforms(limit) for request, limit in zip(requests, limits, strict=True)]
        certainty = [1.0] * len(requests)
        for depth in range(max(limits, default=0)):
            places = [
                place
                for place, (request, limit) in enumerate(zip(requests, limits, strict=True))
                if depth < limit
                and len(drafts[place]) == depth
                and certainty[place] >= LEAST_CERTAINTY
                and self._make_room(states[place], len(request.tokens) + depth)
            ]
            if not places:
                break
            pending = [[*requests[at].tokens, *drafts[at]][len(states[at].tokens) :] for at in places]
            logits_BV = self._forward([states[at] for at in places], pending)
            for at in places:
                states[at].sampling.uniform = draws[at][depth]
            tokens = sample(logits_BV, [states[at].sampling for at in places])
            for at, token, share in zip(places, tokens, _probabilities(logits_BV, tokens), strict=True):
                drafts[at].append(token)
                if states[at].sampling.is_greedy:
                    certainty[at] *= share
        return drafts

    def release(self, request: Request) -> None:
        """Give back a request's pages."""
        state = self._states.pop(request.id, None)
        for page in state.block_table if state else ():
            self._pool.release(page)

    def _state(self, request: Request) -> _DraftState:
        if request.id not in self._states:
            # Penalties and grammars are left to the check: a guess need not be right.
            plain = replace(
                request.params, grammar=None, logit_bias=(), banned_ids=(),
                repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0,
            )  # fmt: skip
            self._states[request.id] = _DraftState(SamplingState((), plain))
        state = self._states[request.id]
        state.rewind(request.tokens)
        return state

    def _make_room(self, state: _DraftState, num_tokens: int) -> bool:
        while len(state.block_table) < num_pages_for(num_tokens):
            page = self._pool.allocate()
            if page is None:
                return False
            state.block_table.append(page)
        return True

    def _forward(self, states: list[_DraftState], pending: list[list[int]]) -> torch.Tensor:
        """Read what is pending of each; return the logits_BV behind the last tokens."""
        for state, tokens in zip(states, pending, strict=True):
            while len(tokens) > PIECE:
                self._runner.forward(tokens[:PIECE], [Span(state.block_table, len(state.tokens), PIECE)], [])
                state.tokens += tokens[:PIECE]
                del tokens[:PIECE]
        spans = [
            Span(each.block_table, len(each.tokens), len(tokens)) for each, tokens in zip(states, pending, strict=True)
        ]
        ends, total = [], 0
        for state, tokens in zip(states, pending, strict=True):
            state.tokens += tokens
            total += len(tokens)
            ends.append(total - 1)
        hidden_BD = self._runner.forward([token for tokens in pending for token in tokens], spans, ends)
        return trim_padded_vocabulary(self._runner.logits(hidden_BD), self._tokenizer)


def _probabilities(logits_BV: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    chosen_B = logits_BV[torch.arange(len(tokens)), torch.tensor(tokens)]
    return (chosen_B - logits_BV.logsumexp(-1)).exp().tolist()
