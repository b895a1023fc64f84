"""Draft tokens from a smaller model with the same vocabulary.

The target model accepts a draft token that equals its own sample: the most likely token, or the sample at the request's
own uniform number. Drafts thus change the number of steps, but no token of any request.

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

# Smallest joint probability of a greedy draft for further draft tokens. Sampled drafts ignore the probability: with
# equal uniform numbers, acceptance depends on the agreement of both models alone.
LEAST_CERTAINTY = 0.7
# Prompt tokens per forward pass of the draft model.
PIECE = 2048


@dataclass(slots=True)
class _DraftState:
    """Tokens of a request in the draft model's cache; the target model has verified the first `num_verified`."""

    sampling: SamplingState
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    tokens: list[int] = field(default_factory=list)
    num_verified: int = 0

    def rewind(self, tokens: list[int]) -> None:
        """Drop tokens from the first rejected draft token on."""
        most = min(len(self.tokens), len(tokens) - 1)
        while self.num_verified < most and self.tokens[self.num_verified] == tokens[self.num_verified]:
            self.num_verified += 1
        del self.tokens[self.num_verified :]


class ModelDrafter:
    """A draft model with its own KV cache, sampling with the uniform numbers of each request.

    Example:
        >>> drafter = ModelDrafter(open_runner(small, 64, small.dtype), tokenizer, num_pages=64)
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, *, num_pages: int):
        self._runner, self._tokenizer, self._pool = runner, tokenizer, PagePool(num_pages)
        self._states: dict[int, _DraftState] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        """Return continuations by the draft model; an empty draft where the draft cache is full."""
        drafts: list[list[int]] = [[] for _ in requests]
        states = [self._state(request) for request in requests]
        draws = [request.sampling.next_uniforms(limit) for request, limit in zip(requests, limits, strict=True)]
        certainty = [1.0] * len(requests)
        for depth in range(max(limits, default=0)):
            active = [
                index
                for index, (request, limit) in enumerate(zip(requests, limits, strict=True))
                if depth < limit
                and len(drafts[index]) == depth
                and certainty[index] >= LEAST_CERTAINTY
                and self._make_room(states[index], len(request.tokens) + depth)
            ]
            if not active:
                break
            pending = [[*requests[index].tokens, *drafts[index]][len(states[index].tokens) :] for index in active]
            logits_BV = self._forward([states[index] for index in active], pending)
            for index in active:
                states[index].sampling.uniform = draws[index][depth]
            tokens = sample(logits_BV, [states[index].sampling for index in active])
            for index, token, share in zip(active, tokens, _probabilities(logits_BV, tokens), strict=True):
                drafts[index].append(token)
                if states[index].sampling.is_greedy:
                    certainty[index] *= share
        return drafts

    def release(self, request: Request) -> None:
        """Free the pages of a request."""
        state = self._states.pop(request.id, None)
        for page in state.block_table if state else ():
            self._pool.release(page)

    def _state(self, request: Request) -> _DraftState:
        if request.id not in self._states:
            # Penalties and grammars cost time here; verification by the target model applies them.
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
        """Compute pending tokens of every request; return logits_BV after the last tokens."""
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
