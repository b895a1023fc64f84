"""Engine: requests -> tokens, many at once; requests join and leave between steps. Knows no conversations and no HTTP.

One thread drives it: `submit`, `step` and `abort` are not to be called at the same time. What goes wrong with one
request (logits that are not numbers, an exception) ends that request alone.

Shapes: N rows whose hidden states are needed, D model width, V vocabulary.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

from puna.engine.choose import choose, score_ids
from puna.engine.native import NativeRunner, native_kernels
from puna.engine.pages import PagePool, num_pages_for
from puna.engine.request import Request, State
from puna.engine.runner import Runner, TorchRunner
from puna.engine.sampler import Chunk, SamplingParams, TokenLogprob
from puna.engine.scheduler import Scheduler, Work
from puna.engine.text import TextStream
from puna.errors import RequestError
from puna.kernels.native import PAGE_LEN, Span
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Positions whose logits are held at once when a prompt is scored.
SCORED_TOKENS = 512
# What the cache may grow to when the caller sets no `cache_tokens`; one request of full length always fits.
DEFAULT_CACHE_BYTES = 8 << 30


class Choice(NamedTuple):
    """The chosen token and, if asked for, its log-probability."""

    token: int
    logprob: TokenLogprob | None


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
        dtype = dtype or model.dtype
        self.tokenizer, self.config = tokenizer, model.config
        self.max_context = min(max_context or model.config.max_context, model.config.max_context)
        if cache_tokens is None:
            cache_tokens = _default_cache_tokens(model, max_batch, self.max_context, dtype)
        self.pool = PagePool(cache_tokens // PAGE_LEN)
        self.runner = _open_runner(model, self.pool.num_pages, dtype)
        self._scheduler = Scheduler(self.pool, max_batch=max_batch)
        self._next_id = itertools.count()
        self._requests: dict[int, Request] = {}
        self._aborted: list[tuple[int, Chunk]] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._aborted)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise RequestError if this request can never be served. Touches no state: any thread may call it."""
        vocab_size = self.config.vocab_size
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
        if len(prompt) > self.max_context:
            raise RequestError(
                f"a prompt of {len(prompt)} tokens", expected=f"at most {self.max_context}", param="prompt"
            )
        longest = min(self.max_context, self.pool.num_pages * PAGE_LEN)
        if len(prompt) + params.max_tokens > longest:
            raise RequestError(
                f"{len(prompt)} prompt tokens and max_tokens = {params.max_tokens}",
                expected=f"together at most {longest}",
                hint="Ask for fewer tokens or shorten the prompt",
                param="max_tokens",
            )

    def submit(self, prompt: list[int], params: SamplingParams, *, tenant: str = "") -> int:
        """Queue a prompt and return its request id; RequestError at once if it can never be served.

        Tenants get equal shares of the machine, and none can tell what another one has asked.
        """
        self.check(prompt, params)
        text = TextStream(self.tokenizer, params.stop_strings)
        request = Request(next(self._next_id), list(prompt), params, text, tenant)
        self._requests[request.id] = request
        self._scheduler.add(request)
        return request.id

    def abort(self, request_id: int) -> None:
        """End a request; its last chunk comes with the next step. No effect on unknown or finished ids."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)
            self._aborted.append((request.id, request.end("abort")))

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Chunk]]:
        """Compute a piece of every running request, and choose the next token of those that are ready for it."""
        aborted, self._aborted = self._aborted, []
        works = self._scheduler.plan()
        outcomes = _together_or_alone(self._compute, works)
        choices = _choose_all(works, outcomes)
        chunks = [self._settle(work, choice) for work, choice in zip(works, choices, strict=True)]
        self._scheduler.check()
        return [*aborted, *(chunk for chunk in chunks if chunk is not None)]

    def _compute(self, works: list[Work]) -> list[torch.Tensor | None]:
        """Run the works' tokens in one forward; return the logits_V behind each that is its request's last one."""
        tokens, spans, rows, ends = [], [], [], []
        for work in works:
            request, first = work.request, len(tokens)
            tokens += request.tokens[work.start : work.start + work.num_tokens]
            spans.append(Span(request.table, work.start, work.num_tokens))
            scored = range(first, first + min(work.num_tokens, request.num_to_score))
            rows += scored
            if work.is_last and not (scored and scored[-1] == len(tokens) - 1):
                rows.append(len(tokens) - 1)
            ends.append(len(rows))
        hidden_ND = self.runner.forward(tokens, spans, rows)
        last = [end - 1 for work, end in zip(works, ends, strict=True) if work.is_last]
        logits = iter(self.runner.logits(hidden_ND[last]) if last else ())
        scores = [
            self._score(work, hidden_ND[start : start + min(work.num_tokens, work.request.num_to_score)])
            for work, start in zip(works, [0, *ends], strict=False)
        ]
        # From here on nothing can fail: what fails is done again for each work alone.
        for work, scored in zip(works, scores, strict=True):
            work.request.prompt_logprobs += scored
        return [next(logits) if work.is_last else None for work in works]

    def _score(self, work: Work, hidden_ND: torch.Tensor) -> list[TokenLogprob]:
        """Score the prompt's tokens behind those whose hidden states are given."""
        request, scored = work.request, []
        targets = request.prompt[work.start + 1 : work.start + 1 + len(hidden_ND)]
        for start in range(0, len(targets), SCORED_TOKENS):
            piece = targets[start : start + SCORED_TOKENS]
            logits_NV = self.runner.logits(hidden_ND[start : start + len(piece)])
            scored += score_ids(logits_NV, piece, request.params.logprobs or 0)
        return scored

    def _settle(self, work: Work, outcome: Choice | Exception | None) -> tuple[int, Chunk] | None:
        """Note what came of a work; return its chunk, unless a token is yet to be chosen."""
        request = work.request
        try:
            if isinstance(outcome, Exception):
                raise outcome
            self._scheduler.commit(work)
            if outcome is None:
                return None
            chunk = request.extend(*outcome)
        except Exception as error:
            log.warning("request %d failed", request.id, exc_info=error)
            chunk = request.end("error", error=f"{type(error).__name__}: {error}")
        if chunk.finish_reason is not None:
            self._end(request, is_clean=chunk.finish_reason != "error")
        return request.id, chunk

    def _end(self, request: Request, *, is_clean: bool = True) -> None:
        if not is_clean:
            for page in request.table:
                self.pool.forget(page)
        freed = self._scheduler.remove(request)
        if not is_clean:
            for page in freed:
                self.runner.clear(page)
        assert request.state is State.ENDED
        del self._requests[request.id]


def _choose_all(
    works: list[Work], outcomes: "list[torch.Tensor | Exception | None]"
) -> list[Choice | Exception | None]:
    """Choose a token from each work's logits; what has none, or failed, stays as it is."""
    pairs = list(zip(works, outcomes, strict=True))
    ready = [(work.request, logits_V) for work, logits_V in pairs if isinstance(logits_V, torch.Tensor)]
    choices = iter(_together_or_alone(_choose_tokens, ready))
    return [next(choices) if isinstance(outcome, torch.Tensor) else outcome for outcome in outcomes]


def _choose_tokens(items: "list[tuple[Request, torch.Tensor]]") -> list[Choice]:
    logits_BV = torch.stack([logits_V for _, logits_V in items])
    if not logits_BV.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    requests = [request for request, _ in items]
    tokens = choose(logits_BV, [request.row for request in requests])
    choices: list[Choice] = []
    for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
        num_top = request.params.logprobs
        logprob = None if num_top is None else score_ids(logits_BV[row : row + 1], [token], num_top)[0]
        choices.append(Choice(token, logprob))
    return choices


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


def _open_runner(model: Llama, num_pages: int, dtype: torch.dtype) -> Runner:
    kernels = native_kernels(model, dtype)
    if kernels is not None:
        return NativeRunner(model, kernels, num_pages=num_pages)
    return TorchRunner(model, num_pages=num_pages, dtype=dtype)


def _default_cache_tokens(model: Llama, max_batch: int, max_context: int, dtype: torch.dtype) -> int:
    config = model.config
    token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    row = num_pages_for(max_context) * PAGE_LEN
    return max(row, min(max_batch * row, DEFAULT_CACHE_BYTES // token_bytes))
