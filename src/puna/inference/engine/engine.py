"""Continuous batching: token ids of many requests -> generated token ids.

Requests join and leave the batch between steps. A single thread calls `submit`, `step` and `abort`. An exception or NaN
logits end only the request at fault. Conversations and HTTP belong to higher modules.

Shapes: N requested hidden states, D model width, V vocabulary.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

from puna.formats.tokenizer import Tokenizer
from puna.inference.engine.adapters import AdapterKey, Adapters
from puna.inference.engine.cache.paged_cache import PAGE_LEN, PagePool, num_pages_for
from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.options import DEFAULTS, EngineOptions
from puna.inference.engine.outputs import Chunk, TokenLogprob, Usage
from puna.inference.engine.runners.opening import open_runner
from puna.inference.engine.runners.runner import Runner, Span
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.sampling.sampler import sample, token_logprobs, trim_padded_vocabulary
from puna.inference.engine.scheduling.request import Request, State
from puna.inference.engine.scheduling.scheduler import ScheduledRequest, Scheduler
from puna.inference.engine.speculative.draft_model import ModelDrafter
from puna.inference.engine.speculative.drafter import Drafter
from puna.inference.engine.speculative.prompt_lookup import PromptLookup
from puna.model.llama import Llama
from puna.model.quantization.scheme import ROW_SCALE_BYTES
from puna.pipeline.errors import ConfigError, RequestError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Positions per chunk of prompt scoring: bounds the memory of logits.
SCORED_TOKENS = 512
# Largest decoding batch with speculative decoding; verification costs more than it saves in larger batches.
MAX_DRAFTED = 8
# Largest KV cache where options set no `cache_tokens`; one request of full length always fits.
DEFAULT_CACHE_BYTES = 8 << 30


class Choice(NamedTuple):
    """A sampled token, with the log-probability if requested."""

    token: int
    logprob: TokenLogprob | None


class BatchRow(NamedTuple):
    """A scheduled request in a forward pass.

    `hidden_rows` index the needed hidden states among all tokens of the pass. Among the needed hidden states of all
    requests, `scored` index the states for prompt log-probabilities and `sampled` the states for next tokens.
    """

    scheduled: ScheduledRequest
    tokens: list[int]
    span: Span
    hidden_rows: list[int]
    scored: range
    sampled: range


class Engine:
    """A model with KV cache, scheduler and adapters.

    Every submitted request ends with a single chunk with a finish_reason, also after `abort`.

    Example:
        >>> engine = Engine(model, tokenizer)
        >>> request = engine.submit(tokenizer.encode("Once"), SamplingParams(max_tokens=4))
        >>> while engine.has_work:
        ...     for request_id, chunk in engine.step():
        ...         print(chunk.text, end="")
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        options: EngineOptions = DEFAULTS,
        draft: Llama | PromptLookup | None = None,
    ):
        dtype = options.dtype or model.dtype
        self.tokenizer, self.config = tokenizer, model.config
        self.max_context = min(options.max_context or model.config.max_context, model.config.max_context)
        cache_tokens = options.cache_tokens
        if cache_tokens is None:
            cache_tokens = _default_cache_tokens(model, options, self.max_context, dtype)
        self.pool = PagePool(cache_tokens // PAGE_LEN)
        self.runner = open_runner(model, self.pool.num_pages, dtype, is_int8_cache=options.is_int8_cache)
        self.adapters = _open_adapters(options, self.runner)
        self._scheduler = Scheduler(self.pool, max_batch=options.max_batch, adapters=self.adapters)
        self._drafter = _open_drafter(draft, tokenizer, self.pool.num_pages, options)
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

    def usage(self) -> Usage:
        """Return the use of the engine, with cache hits and queue times of requests started since the last call."""
        scheduler, pool = self._scheduler, self.pool
        num_cached, seconds = scheduler.take_started()
        return Usage(
            num_free_pages=pool.num_free,
            num_used_pages=pool.num_held,
            num_cached_pages=pool.num_available - pool.num_free,
            running=Counter(request.tenant for request in scheduler.running),
            waiting=scheduler.num_waiting_by_tenant,
            num_cached_tokens=num_cached,
            queue_seconds=seconds,
        )

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Check a request without changing state; safe to call from any thread.

        Raises:
            RequestError: The engine can never serve the request.
        """
        vocab_size = min(self.config.vocab_size, self.tokenizer.vocab_size)
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

    def submit(self, prompt: list[int], params: SamplingParams, *, tenant: str = "", adapter: str = "") -> int:
        """Queue a prompt and return the id of the request.

        Tenants get equal shares of the machine and separate prefix caches. An empty `adapter`
        means the plain model.

        Raises:
            RequestError: The engine can never serve the request.
        """
        self.check(prompt, params)
        key = self._find_adapter(adapter) if adapter else None
        text = TextStream(self.tokenizer, params.stop_strings)
        request = Request(next(self._next_id), list(prompt), params, text, tenant, key)
        self._requests[request.id] = request
        self._scheduler.add(request)
        return request.id

    def _find_adapter(self, name: str) -> AdapterKey:
        key = self.adapters.find(name) if self.adapters else None
        if key is None:
            raise RequestError(
                f"the adapter {name!a:.100}", expected="the name of an adapter of the model", param="model"
            )
        return key

    def abort(self, request_id: int) -> None:
        """End a request; the next step returns the request's last chunk. Unknown and finished ids have no effect."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)
            self._aborted.append((request.id, request.end("abort")))

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Chunk]]:
        """Run a forward pass of the scheduled batch and sample next tokens; return (request id, chunk) pairs."""
        aborted, self._aborted = self._aborted, []
        batch = self._add_draft_tokens(self._scheduler.schedule())
        outcomes = _together_or_alone(self._compute, batch)
        chunks = self._choose(list(zip(batch, outcomes, strict=True)))
        self._scheduler.check()
        return [*aborted, *chunks]

    def _add_draft_tokens(self, batch: list[ScheduledRequest]) -> list[ScheduledRequest]:
        """Propose draft tokens for decoding requests while the batch is small."""
        decoding = [scheduled for scheduled in batch if scheduled.request.is_decoding and scheduled.is_sampled]
        if self._drafter is None or not 0 < len(decoding) <= MAX_DRAFTED:
            return batch
        requests = [scheduled.request for scheduled in decoding]
        drafts = dict(zip(requests, _together_or_alone(self._propose, requests), strict=True))
        # A failing drafter costs speed only: the request decodes without draft tokens.
        guessed = {request: draft for request, draft in drafts.items() if not isinstance(draft, Exception)}
        return [self._scheduler.add_draft_tokens(scheduled, guessed.get(scheduled.request, ())) for scheduled in batch]

    def _propose(self, requests: list[Request]) -> list[list[int]]:
        assert self._drafter is not None
        limits = [max(0, min(each.draft_limit.next_limit(), each.max_len - len(each.tokens) - 1)) for each in requests]
        return self._drafter.propose(requests, limits)

    def _compute(self, batch: list[ScheduledRequest]) -> list[torch.Tensor | None]:
        """Run the batch in a single forward pass.

        Returns:
            logits_NV per request, after the last token and after every draft token; None for partial prompts.
        """
        rows = self._layout(batch)
        hidden_ND = self.runner.forward(
            [token for row in rows for token in row.tokens],
            [row.span for row in rows],
            [index for row in rows for index in row.hidden_rows],
        )
        sampled = [index for row in rows for index in row.sampled]
        logits_NV = self._logits(hidden_ND[sampled]) if sampled else None
        scores = [self._score(row.scheduled, hidden_ND[row.scored.start : row.scored.stop]) for row in rows]
        # NOTE: no failure may follow this line, since a failed batch is computed again request by request.
        for row, entries in zip(rows, scores, strict=True):
            row.scheduled.request.prompt_logprobs += entries
        parts = logits_NV.split([len(row.sampled) for row in rows]) if logits_NV is not None else [None] * len(rows)
        return [part if row.sampled else None for row, part in zip(rows, parts, strict=True)]

    def _layout(self, batch: list[ScheduledRequest]) -> list[BatchRow]:
        """Concatenate the tokens of all requests."""
        rows: list[BatchRow] = []
        start = first = 0
        for scheduled in batch:
            request, num_tokens = scheduled.request, scheduled.num_tokens + len(scheduled.draft_tokens)
            tokens = request.tokens[scheduled.start : scheduled.start + scheduled.num_tokens]
            tokens += scheduled.draft_tokens
            span = Span(request.block_table, scheduled.start, num_tokens, self._load_adapter(request))
            end, num_scored = start + num_tokens, min(scheduled.num_tokens, request.num_to_score)
            num_sampled = 1 + len(scheduled.draft_tokens) if scheduled.is_sampled else 0
            hidden_rows = [*range(start, start + num_scored), *range(end - num_sampled, end)]
            scored = range(first, first + num_scored)
            sampled = range(scored.stop, scored.stop + num_sampled)
            rows.append(BatchRow(scheduled, tokens, span, hidden_rows, scored, sampled))
            start, first = end, sampled.stop
        return rows

    def _logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return trim_padded_vocabulary(self.runner.logits(hidden_ND), self.tokenizer)

    def _load_adapter(self, request: Request) -> object:
        return self.adapters.load(request.adapter) if self.adapters and request.adapter else None

    def _score(self, scheduled: ScheduledRequest, hidden_ND: torch.Tensor) -> list[TokenLogprob]:
        """Return log-probabilities of the prompt tokens predicted by the given hidden states."""
        request, scored = scheduled.request, []
        targets = request.prompt[scheduled.start + 1 : scheduled.start + 1 + len(hidden_ND)]
        for start in range(0, len(targets), SCORED_TOKENS):
            piece = targets[start : start + SCORED_TOKENS]
            logits_NV = self._logits(hidden_ND[start : start + len(piece)])
            scored += token_logprobs(logits_NV, piece, request.params.logprobs or 0)
        return scored

    def _choose(
        self, computed: "list[tuple[ScheduledRequest, torch.Tensor | Exception | None]]"
    ) -> list[tuple[int, Chunk]]:
        """Sample next tokens, as long as samples equal draft tokens; return the chunks of all requests."""
        chunks: list[tuple[int, Chunk]] = []
        pending: list[tuple[ScheduledRequest, torch.Tensor]] = []
        for scheduled, outcome in computed:
            if isinstance(outcome, Exception):
                chunks.append((scheduled.request.id, self._fail(scheduled.request, outcome)))
                continue
            self._scheduler.commit(scheduled.request, scheduled.num_tokens)
            if outcome is not None:
                pending.append((scheduled, outcome))
        depth = 0
        while pending:
            choices = _together_or_alone(
                _choose_tokens, [(scheduled.request, logits[depth]) for scheduled, logits in pending]
            )
            ready, pending = pending, []
            for (scheduled, logits_NV), choice in zip(ready, choices, strict=True):
                chunk = self._extend(scheduled.request, choice)
                chunks.append((scheduled.request.id, chunk))
                if self._accepts_draft_token(scheduled, depth, chunk):
                    self._scheduler.commit(scheduled.request, 1)
                    pending.append((scheduled, logits_NV))
            depth += 1
        return chunks

    def _accepts_draft_token(self, scheduled: ScheduledRequest, depth: int, chunk: Chunk) -> bool:
        """Whether the sampled token equals the draft token at `depth`; adapts the request's draft limit."""
        if depth >= len(scheduled.draft_tokens) or chunk.finish_reason is not None:
            return False
        is_right = chunk.ids == (scheduled.draft_tokens[depth],)
        if not is_right or depth + 1 == len(scheduled.draft_tokens):
            scheduled.request.draft_limit.update(depth + is_right, is_all=is_right)
        return is_right

    def _extend(self, request: Request, choice: Choice | Exception) -> Chunk:
        """Append the sampled token to a request; an error ends the request."""
        try:
            if isinstance(choice, Exception):
                raise choice
            chunk = request.extend(*choice)
        except Exception as error:
            return self._fail(request, error)
        if chunk.finish_reason is not None:
            self._end(request)
        return chunk

    def _fail(self, request: Request, error: Exception) -> Chunk:
        log.warning("request %d failed", request.id, exc_info=error)
        chunk = request.end("error", error=error)
        self._end(request, is_clean=False)
        return chunk

    def _end(self, request: Request, *, is_clean: bool = True) -> None:
        if not is_clean:
            for page in request.block_table:
                self.pool.evict(page)
        freed = self._scheduler.remove(request)
        if not is_clean:
            for page in freed:
                self.runner.clear(page)
        if self._drafter is not None:
            self._drafter.release(request)
        assert request.state is State.ENDED
        del self._requests[request.id]


def _choose_tokens(items: "list[tuple[Request, torch.Tensor]]") -> list[Choice]:
    logits_BV = torch.stack([logits_V for _, logits_V in items])
    if not logits_BV.amax(-1).isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    requests = [request for request, _ in items]
    tokens = sample(logits_BV, [request.sampling for request in requests])
    choices: list[Choice] = []
    for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
        num_top = request.params.logprobs
        logprob = None if num_top is None else token_logprobs(logits_BV[row : row + 1], [token], num_top)[0]
        choices.append(Choice(token, logprob))
    return choices


def _together_or_alone(compute: Callable[[list[Item]], list[Outcome]], items: list[Item]) -> list[Outcome | Exception]:
    """Compute all items at once; after an exception, compute every item alone, so only faulty items fail."""
    if not items:
        return []
    try:
        return list(compute(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
        return [outcome for item in items for outcome in _together_or_alone(compute, [item])]


def _open_adapters(options: EngineOptions, runner: Runner) -> Adapters | None:
    if options.adapters is None:
        return None
    return Adapters(
        options.adapters, runner.config, runner.prepare, itemsize=runner.dtype.itemsize, max_bytes=options.adapter_bytes
    )


def _open_drafter(
    draft: Llama | PromptLookup | None, tokenizer: Tokenizer, num_pages: int, options: EngineOptions
) -> Drafter | None:
    if not isinstance(draft, Llama):
        return draft
    if draft.config.vocab_size < tokenizer.vocab_size:
        given = f"a draft with {draft.config.vocab_size:,} embeddings"
        raise ConfigError(given, expected=f"at least the model's {tokenizer.vocab_size:,} token ids")
    runner = open_runner(draft, num_pages, draft.dtype, is_int8_cache=options.is_int8_cache)
    return ModelDrafter(runner, tokenizer, num_pages=num_pages)


def _default_cache_tokens(model: Llama, options: EngineOptions, max_context: int, dtype: torch.dtype) -> int:
    value_bytes, scale_bytes = (1, ROW_SCALE_BYTES) if options.is_int8_cache else (dtype.itemsize, 0)
    token_bytes = model.config.kv_bytes_per_token(value_bytes, scale_bytes=scale_bytes)
    row = num_pages_for(max_context) * PAGE_LEN
    return max(row, min(options.max_batch * row, DEFAULT_CACHE_BYTES // token_bytes))
