"""One request on its way through the engine: its prompt, what it has so far, and when it ends. Knows no cache."""

import random
from dataclasses import dataclass, field

from puna.engine.sampler import Chunk, FinishReason, SamplingParams, TokenLogprob
from puna.engine.text import TextStream


@dataclass(eq=False, slots=True)
class Request:
    id: int
    prompt: list[int]
    params: SamplingParams
    text: TextStream
    ids: list[int] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    draw: float = 0.0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        # One generator a request: what else is in the batch cannot change its draws.
        self._random = random.Random(self.params.seed)
        self.draw = self._random.random()

    @property
    def max_len(self) -> int:
        return len(self.prompt) + self.params.max_tokens

    @property
    def last_position(self) -> int:
        return len(self.prompt) + len(self.ids) - 1

    def extend(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Take a chosen token (or, if none was asked for, leave it); the last chunk has a finish_reason."""
        if self.params.max_tokens == 0:
            return self.end("length")
        self.draw = self._random.random()
        self.ids.append(token)
        ids, logprobs = (token,), (logprob,) if logprob else ()
        if token in self.params.stop_ids:
            return self.end("stop", ids=ids, text=self.text.finish(), logprobs=logprobs)
        text = self.text.feed(token)
        if self.text.is_stopped:
            return self.end("stop", ids=ids, text=text, logprobs=logprobs)
        if len(self.ids) >= self.params.max_tokens:
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
        taken, self.prompt_logprobs = self.prompt_logprobs, ()
        return taken
