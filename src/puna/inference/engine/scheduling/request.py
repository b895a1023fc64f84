"""A request in the engine: tokens, block table, sampling state and the end of generation."""

import time
from array import array
from dataclasses import dataclass, field
from enum import Enum

from puna.inference.engine.adapters import AdapterKey
from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.outputs import Chunk, FinishReason, TokenLogprob
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.sampling.sampler import SamplingState

MAX_DRAFT_TOKENS = 12
# Largest number of steps without draft tokens after rejected drafts.
MAX_PAUSED_STEPS = 8


class State(Enum):
    """WAITING -> RUNNING -> ENDED; preemption leads from RUNNING to WAITING."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True)
class DraftLimit:
    """Adaptive number of draft tokens of a request: rises with accepted drafts, falls with rejected drafts."""

    limit: int = 8
    num_misses: int = 0  # consecutive drafts without an accepted token
    num_paused: int = 0  # coming steps without draft tokens

    def next_limit(self) -> int:
        """Return the draft limit of the step."""
        if self.num_paused:
            self.num_paused -= 1
            return 0
        return self.limit

    def update(self, num_accepted: int, *, is_all: bool) -> None:
        """Adapt to the accepted draft tokens of a step; repeated misses pause drafting for ever longer."""
        if is_all:
            self.limit, self.num_misses = min(MAX_DRAFT_TOKENS, self.limit + 4), 0
            return
        self.limit, self.num_misses = max(1, num_accepted + 1), 0 if num_accepted else self.num_misses + 1
        self.num_paused = min(2 ** max(0, self.num_misses - 1) - 1, MAX_PAUSED_STEPS)


@dataclass(eq=False, slots=True)
class Request:
    """Prompt and generated tokens of a request: the first `num_computed` of all `tokens` are in the KV cache."""

    id: int
    prompt: list[int]
    params: SamplingParams
    text: TextStream
    tenant: str = ""
    adapter: AdapterKey | None = None
    state: State = State.WAITING
    tokens: list[int] = field(init=False)
    num_computed: int = 0
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    page_keys: list[bytes] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    draft_limit: DraftLimit = field(default_factory=DraftLimit)
    sampling: SamplingState = field(init=False)
    submitted: float = field(default_factory=time.monotonic)
    has_started: bool = False
    _has_reported: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.sampling = SamplingState(self.prompt, self.params)
        if self.params.echo_logprobs:
            self.prompt_logprobs.append(None)

    @property
    def ids(self) -> list[int]:
        """Generated token ids."""
        return self.tokens[len(self.prompt) :]

    @property
    def max_len(self) -> int:
        return len(self.prompt) + self.params.max_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens to compute before the next sample: the rest of the prompt, or generated tokens."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        return self.num_computed >= len(self.prompt)

    @property
    def num_to_score(self) -> int:
        """Prompt tokens with a requested log-probability still to compute."""
        return len(self.prompt) - len(self.prompt_logprobs) if self.params.echo_logprobs else 0

    def reset_computed(self) -> None:
        """Reset the block table after preemption; generated tokens stay."""
        self.block_table, self.num_computed = array("i"), 0
        if self.num_to_score:
            del self.prompt_logprobs[1:]

    def extend(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Append a sampled token and all tokens then forced by the grammar; append nothing if max_tokens is 0."""
        if self.params.max_tokens == 0:
            return self.end("length")
        ids, text, reason = [token], *self._take(token)
        # Log-probabilities need a forward pass for every token, so none is skipped by the grammar.
        if reason is None and self.sampling.matcher and self.params.logprobs is None:
            for forced in self.sampling.matcher.forced_ids():
                more, reason = self._take(forced)
                ids, text = [*ids, forced], text + more
                if reason is not None:
                    break
        logprobs = (logprob,) if logprob else ()
        return Chunk(tuple(ids), text, logprobs, reason, self._take_prompt_logprobs())

    def _take(self, token: int) -> tuple[str, FinishReason | None]:
        """Append an id; return newly certain text, and the finish reason if the request ends here."""
        self.sampling.accept(token)
        self.tokens.append(token)
        text = "" if token in self.params.stop_ids else self.text.feed(token)
        reason: FinishReason | None = None
        if (
            token in self.params.stop_ids
            or self.text.is_stopped
            or (self.sampling.matcher and self.sampling.matcher.is_over)
        ):
            reason = "stop"
        elif len(self.tokens) >= self.max_len:
            reason = "length"
        return text + ("" if reason is None else self.text.finish()), reason

    def end(self, reason: FinishReason, *, error: Exception | None = None) -> Chunk:
        """Return the last chunk."""
        return Chunk((), "", (), reason, self._take_prompt_logprobs(), error)

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        has_reported, self._has_reported = self._has_reported, True
        return () if has_reported else tuple(self.prompt_logprobs)
