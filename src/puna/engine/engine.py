"""Engine: requests -> tokens, many at once; requests join and leave between steps. Knows no conversations and no HTTP.

One thread drives it: `submit`, `step` and `abort` are not to be called at the same time. What goes wrong with one
request (logits that are not numbers, an exception) ends that request alone. No preemption: a request is admitted when
its whole length fits.

Shapes: T tokens, D model width, B requests, V vocabulary.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from puna.engine.cache import KVCache, round_up
from puna.engine.choose import choose, score_ids
from puna.engine.request import Request
from puna.engine.sampler import Chunk, SamplingParams, TokenLogprob
from puna.engine.text import TextStream
from puna.errors import RequestError
from puna.model.llama import Attend, Llama
from puna.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Prompts are prefilled together up to this many tokens; a longer one goes alone, in pieces of as many.
PREFILL_TOKENS = 4096
# Positions whose logits are held at once when a prompt is scored.
SCORED_TOKENS = 512
# What the cache may grow to when the caller sets no `cache_tokens`; one request of full length always fits.
DEFAULT_CACHE_BYTES = 8 << 30


class Engine:
    """Every submitted request ends with exactly one chunk that has a finish_reason, also after `abort`."""

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 32,
        max_context: int | None = None,
        cache_tokens: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        weight = model.embed_tokens.weight
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype or weight.dtype
        self.max_context = min(max_context or model.config.max_context, model.config.max_context)
        if cache_tokens is None:
            cache_tokens = _default_cache_tokens(model, max_batch, self.max_context, self.dtype)
        self.cache = KVCache(
            model.config, max_rows=max_batch, max_tokens=cache_tokens, dtype=self.dtype, device=weight.device
        )
        self._next_id = itertools.count()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # the index is the row in the cache
        self._aborted: list[tuple[int, Chunk]] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._aborted)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise RequestError if this request can never be served. Touches no state: any thread may call it."""
        vocab_size = self.model.config.vocab_size
        if not prompt:
            raise RequestError("an empty prompt", expected="at least one token id", param="prompt")
        if not all(0 <= token < vocab_size for token in prompt):
            raise RequestError("a token id outside the vocabulary", expected=f"0 to {vocab_size - 1}", param="prompt")
        if params.logprobs and params.logprobs > vocab_size:
            raise RequestError(f"logprobs = {params.logprobs}", expected=f"at most {vocab_size}", param="logprobs")
        if not all(0 <= token < vocab_size for token in (*dict(params.logit_bias), *params.banned_ids)):
            raise RequestError(
                "a token id outside the vocabulary", expected=f"0 to {vocab_size - 1}", param="logit_bias"
            )
        room = self.max_context - len(prompt)
        if room < 0:
            raise RequestError(
                f"a prompt of {len(prompt)} tokens", expected=f"at most {self.max_context}", param="prompt"
            )
        length = len(prompt) + params.max_tokens
        if params.max_tokens > room or not self.cache.fits_alone(length):
            raise RequestError(
                f"{len(prompt)} prompt tokens and max_tokens = {params.max_tokens}",
                expected=f"together at most {min(self.max_context, self.cache.max_tokens)}",
                hint="Ask for fewer tokens or shorten the prompt",
                param="max_tokens",
            )

    def submit(self, prompt: list[int], params: SamplingParams) -> int:
        """Queue a prompt and return its request id; RequestError at once if it can never be served."""
        self.check(prompt, params)
        text = TextStream(self.tokenizer, params.stop_strings)
        request = Request(next(self._next_id), list(prompt), params, text)
        self._waiting.append(request)
        return request.id

    def abort(self, request_id: int) -> None:
        """End a request; its last chunk comes with the next step. No effect on unknown or finished ids."""
        request = next((r for r in (*self._waiting, *self._running) if r.id == request_id), None)
        if request is None:
            return
        if request in self._running:
            self._release(request)
        else:
            self._waiting.remove(request)
        self._aborted.append((request.id, request.end("abort")))

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Chunk]]:
        """Sample one token for every running request, then prefill what fits of the waiting ones."""
        chunks, self._aborted = self._aborted, []
        if self._running:
            chunks += self._decode()
        chunks += self._prefill(self._admit())
        assert self.cache.num_used == len(self._running)
        assert self.cache.num_used + self.cache.num_free == self.cache.max_rows
        return chunks

    def _decode(self) -> list[tuple[int, Chunk]]:
        requests = list(self._running)
        return self._extend(requests, _together_or_alone(self._next_logits, requests))

    def _next_logits(self, requests: list[Request]) -> list[torch.Tensor]:
        """Feed the last token of each; the requests are all the running ones or a single one."""
        for request in requests:
            if request.num_unread > 1:
                self._catch_up(request)
        positions = [request.last_position for request in requests]
        attend = self.cache.step_attend(self._running.index(requests[0]), positions)
        hidden_BD = self._forward([request.ids[-1] for request in requests], positions, attend)
        return list(self.model.logits(hidden_BD))

    def _catch_up(self, request: Request) -> None:
        """Feed what a grammar has forced, but the last token; done twice it changes nothing."""
        start, tokens = request.last_position - request.num_unread + 1, request.ids[-request.num_unread : -1]
        attend = self.cache.piece_attend(self._running.index(request), start, len(tokens))
        self._forward(tokens, list(range(start, start + len(tokens))), attend)

    def _admit(self) -> list[Request]:
        """Move waiting requests to the free rows, first come first served."""
        admitted: list[Request] = []
        num_tokens = 0
        while self._waiting and self.cache.can_admit(self._waiting[0].max_len):
            num_tokens += len(self._waiting[0].prompt)
            if admitted and num_tokens > PREFILL_TOKENS:
                break
            request = self._waiting.popleft()
            self.cache.admit(request.max_len)
            self._running.append(request)
            admitted.append(request)
        return admitted

    def _prefill(self, admitted: list[Request]) -> list[tuple[int, Chunk]]:
        is_long = len(admitted) == 1 and len(admitted[0].prompt) > PREFILL_TOKENS
        read = self._read_in_pieces if is_long else self._read_prompts
        return self._extend(admitted, _together_or_alone(read, admitted))

    def _read_prompts(self, requests: list[Request]) -> list[torch.Tensor]:
        """Run the prompts in one packed forward; return the logits behind the last token of each."""
        lengths = [len(request.prompt) for request in requests]
        tokens = [token for request in requests for token in request.prompt]
        positions = [position for length in lengths for position in range(length)]
        attend = self.cache.prompt_attend([self._running.index(request) for request in requests], lengths)
        documents = self._forward(tokens, positions, attend).split(lengths)
        for request, hidden_TD in zip(requests, documents, strict=True):
            if request.params.echo_logprobs:
                request.prompt_logprobs = (None, *self._score(request, 0, hidden_TD))
        return list(self.model.logits(torch.stack([hidden_TD[-1] for hidden_TD in documents])))

    def _read_in_pieces(self, requests: list[Request]) -> list[torch.Tensor]:
        """Do the same for one long prompt: what a piece needs beside the cache does not grow with the prompt."""
        (request,) = requests
        row = self._running.index(request)
        scored: list[TokenLogprob | None] = [None]
        hidden_TD = torch.empty(0)
        for start in range(0, len(request.prompt), PREFILL_TOKENS):
            tokens = request.prompt[start : start + PREFILL_TOKENS]
            attend = self.cache.piece_attend(row, start, len(tokens))
            hidden_TD = self._forward(tokens, list(range(start, start + len(tokens))), attend)
            if request.params.echo_logprobs:
                scored += self._score(request, start, hidden_TD)
        request.prompt_logprobs = tuple(scored) if request.params.echo_logprobs else ()
        return list(self.model.logits(hidden_TD[-1:]))

    def _score(self, request: Request, first: int, hidden_TD: torch.Tensor) -> list[TokenLogprob]:
        """Score the prompt's tokens behind those from position `first` on, whose hidden states are given."""
        scored: list[TokenLogprob] = []
        for start in range(0, len(hidden_TD), SCORED_TOKENS):
            targets = request.prompt[first + start + 1 : first + 1 + min(start + SCORED_TOKENS, len(hidden_TD))]
            if targets:
                logits_TV = self.model.logits(hidden_TD[start : start + len(targets)])
                scored += score_ids(logits_TV, targets, request.params.logprobs or 0)
        return scored

    def _forward(self, tokens: list[int], positions: list[int], attend: Attend) -> torch.Tensor:
        device = self.model.embed_tokens.weight.device
        tokens_T, positions_T = (torch.tensor(values, device=device) for values in (tokens, positions))
        return self.model(tokens_T, positions_T, attend, dtype=self.dtype)

    def _extend(self, requests: list[Request], outcomes: Sequence[torch.Tensor | Exception]) -> list[tuple[int, Chunk]]:
        """Choose the next token of every request from its logits; those that failed end here."""
        pairs = list(zip(requests, outcomes, strict=True))
        alive = [(request, logits_V) for request, logits_V in pairs if not isinstance(logits_V, Exception)]
        choices = iter(_together_or_alone(_choose_tokens, alive))
        return [
            (request.id, self._settle(request, outcome if isinstance(outcome, Exception) else next(choices)))
            for request, outcome in pairs
        ]

    def _settle(self, request: Request, choice: "tuple[int, TokenLogprob | None] | Exception") -> Chunk:
        try:
            if isinstance(choice, Exception):
                raise choice
            chunk = request.extend(*choice)
        except Exception as error:
            log.warning("request %d failed", request.id, exc_info=error)
            chunk = request.end("error", error=f"{type(error).__name__}: {error}")
        if chunk.finish_reason is not None:
            self._release(request, clear=chunk.finish_reason == "error")
        return chunk

    def _release(self, request: Request, *, clear: bool = False) -> None:
        row = self._running.index(request)
        self.cache.release(row, clear=clear)
        last = self._running.pop()
        if last is not request:
            self._running[row] = last


def _choose_tokens(items: list[tuple[Request, torch.Tensor]]) -> list[tuple[int, TokenLogprob | None]]:
    logits_BV = torch.stack([logits_V for _, logits_V in items])
    if not logits_BV.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    requests = [request for request, _ in items]
    tokens = choose(logits_BV, [request.row for request in requests])
    logprobs: list[TokenLogprob | None] = [None] * len(tokens)
    for row, request in enumerate(requests):
        if request.params.logprobs is not None:
            logprobs[row] = score_ids(logits_BV[row : row + 1], [tokens[row]], request.params.logprobs)[0]
    return list(zip(tokens, logprobs, strict=True))


def _together_or_alone(work: Callable[[list[Item]], list[Outcome]], items: list[Item]) -> list[Outcome | Exception]:
    """Do the work for all items at once or, if that raises, for each alone: only those at fault fail."""
    if not items:
        return []
    try:
        return list(work(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
        return [outcome for item in items for outcome in _together_or_alone(work, [item])]


def _default_cache_tokens(model: Llama, max_batch: int, max_context: int, dtype: torch.dtype) -> int:
    config = model.config
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    row = round_up(max_context)
    return max(row, min(max_batch * row, DEFAULT_CACHE_BYTES // token_bytes))
