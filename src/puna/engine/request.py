"""One request on its way through the engine: its tokens, its pages, and when it ends. Knows no cache and no model."""

import random
from array import array
from dataclasses import dataclass, field
from enum import Enum

from puna.engine.sampler import Chunk, FinishReason, SamplingParams, TokenLogprob
from puna.engine.text import TextStream


class State(Enum):
    """WAITING -> RUNNING -> ENDED; a running request that is preempted waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Request:
    """`tokens` are the prompt and what was generated; the first `num_computed` stand in the pages of `table`."""

    id: int
    prompt: list[int]
    params: SamplingParams
    text: TextStream
    tenant: str = ""
    state: State = State.WAITING
    tokens: list[int] = field(init=False)
    num_computed: int = 0
    table: "array[int]" = field(default_factory=lambda: array("i"))
    page_keys: list[bytes] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    draw: float = 0.0
    _has_told: bool = False
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        if self.params.echo_logprobs:
            self.prompt_logprobs.append(None)
        # One generator a request: what else is in the batch cannot change its draws.
        self._random = random.Random(self.params.seed)
        self.draw = self._random.random()

    @property
    def ids(self) -> list[int]:
        """What was generated so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def max_len(self) -> int:
        return len(self.prompt) + self.params.max_tokens

    @property
    def num_left(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        return self.num_left == 1 and len(self.tokens) > len(self.prompt)

    @property
    def num_to_score(self) -> int:
        """Prompt tokens whose log-probability was asked for and is not there yet."""
        return len(self.prompt) - len(self.prompt_logprobs) if self.params.echo_logprobs else 0

    def forget_computed(self) -> None:
        """Begin anew after the pages are given back; what was generated stays."""
        self.table, self.num_computed = array("i"), 0
        if self.num_to_score:
            del self.prompt_logprobs[1:]

    def extend(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Take a chosen token (or, if none was asked for, leave it); the last chunk has a finish_reason."""
        if self.params.max_tokens == 0:
            return self.end("length")
        self.draw = self._random.random()
        self.tokens.append(token)
        ids, logprobs = (token,), (logprob,) if logprob else ()
        if token in self.params.stop_ids:
            return self.end("stop", ids=ids, text=self.text.finish(), logprobs=logprobs)
        text = self.text.feed(token)
        if self.text.is_stopped:
            return self.end("stop", ids=ids, text=text, logprobs=logprobs)
        if len(self.tokens) >= self.max_len:
            return self.end("length", ids=ids, text=text + self.text.finish(), logprobs=logprobs)
        return Chunk(ids, text, logprobs, prompt_logprobs=self._take_prompt_logprobs())

    def end(
        self,
        reason: FinishReason,
        *,
        ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        error: str = "",
    ) -> Chunk:
        return Chunk(ids, text, logprobs, reason, self._take_prompt_logprobs(), error)

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        told, self._has_told = self._has_told, True
        return () if told else tuple(self.prompt_logprobs)
