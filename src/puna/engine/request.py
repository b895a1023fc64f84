"""One request on its way through the engine: its prompt, what it has so far, and when it ends. Knows no cache."""

from dataclasses import dataclass, field

from puna.engine.choose import Row
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
    num_unread: int = 1  # How many of the last ids the model has not been given yet; more than one after a jump.
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        self.row = Row(self.prompt, self.params)

    @property
    def max_len(self) -> int:
        return len(self.prompt) + self.params.max_tokens

    @property
    def last_position(self) -> int:
        return len(self.prompt) + len(self.ids) - 1

    def extend(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """Take a chosen token (or, if none was asked for, leave it), and those that its grammar leaves no choice about.

        The last chunk has a finish_reason.
        """
        if self.params.max_tokens == 0:
            return self.end("length")
        ids, text, reason = [token], *self._take(token)
        # Log-probabilities are the model's, so where they are asked for it is asked about each token.
        if reason is None and self.row.matcher and self.params.logprobs is None:
            for forced in self.row.matcher.forced_ids():
                more, reason = self._take(forced)
                ids, text = [*ids, forced], text + more
                if reason is not None:
                    break
        self.num_unread = len(ids)
        logprobs = (logprob,) if logprob else ()
        return Chunk(tuple(ids), text, logprobs, reason, self._take_prompt_logprobs())

    def _take(self, token: int) -> tuple[str, FinishReason | None]:
        """Append an id; return the text that it makes certain and why the request ends here, if it does."""
        self.row.accept(token)
        self.ids.append(token)
        text = "" if token in self.params.stop_ids else self.text.feed(token)
        reason: FinishReason | None = None
        if token in self.params.stop_ids or self.text.is_stopped or (self.row.matcher and self.row.matcher.is_over):
            reason = "stop"
        elif len(self.ids) >= self.params.max_tokens:
            reason = "length"
        return text + ("" if reason is None else self.text.finish()), reason

    def end(self, reason: FinishReason, *, error: str = "") -> Chunk:
        return Chunk((), "", (), reason, self._take_prompt_logprobs(), error)

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        taken, self.prompt_logprobs = self.prompt_logprobs, ()
        return taken
