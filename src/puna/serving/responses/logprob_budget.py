"""Budget of log-probabilities: requests beyond the budget are rejected before generation, with advice on splitting.

A log-probability takes about 80 bytes of JSON and 120 bytes of memory. The context length bounds a response's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from puna.serving.errors import HttpError, overloaded

MAX_PER_ANSWER = 1 << 20
MAX_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class LogprobCount:
    """Number of log-probabilities in a response, from prompts, tokens and alternatives.

    Attributes:
        prompt_lens: Lengths of the prompts, in tokens.
        num_answers: Answers per prompt.
        max_tokens: New tokens of one answer.
        num_top: Alternatives per token; 0 for the token alone, None for no log-probabilities.
        has_prompt: Whether every answer repeats the log-probabilities of the prompt.

    Example:
        >>> LogprobCount([1000] * 4, 1, 1, 1024, has_prompt=True).num_logprobs
        4100096
    """

    prompt_lens: Sequence[int]
    num_answers: int
    max_tokens: int
    num_top: int | None
    has_prompt: bool = False

    @property
    def num_logprobs(self) -> int:
        return sum(map(self._of_prompt, self.prompt_lens))

    def _of_prompt(self, prompt_len: int) -> int:
        if self.num_top is None:
            return 0
        return self.num_answers * (prompt_len * self.has_prompt + self.max_tokens) * max(1, self.num_top)

    def require_fit(self, param: str) -> None:
        """Raise HttpError (400) if the answer is too large; the message says how many prompts or tokens would fit."""
        if self.num_logprobs <= MAX_PER_ANSWER:
            return
        message = (
            f"The answer would hold {self.num_logprobs:,} log-probabilities (prompts x n x tokens x alternatives); "
            f"at most {MAX_PER_ANSWER:,} fit. {self._way_out()}"
        )
        raise HttpError(400, message, param=param, code="answer_too_large")

    def _way_out(self) -> str:
        largest = max(map(self._of_prompt, self.prompt_lens))
        if largest <= MAX_PER_ANSWER:
            return f"Split the prompts: at most {MAX_PER_ANSWER // largest} in a request."
        if (of_one := largest // self.num_answers) <= MAX_PER_ANSWER:
            return f"Split the answers: one prompt in a request, with n at most {MAX_PER_ANSWER // of_one}."
        tokens = of_one // max(1, self.num_top or 0)
        if most := MAX_PER_ANSWER // tokens:
            return f"Ask for one prompt in a request, and at most {most} alternatives a token."
        return "Split the prompt, or ask for fewer tokens."


def most_tokens(num_answers: int, num_top: int | None) -> int | None:
    """Return the default for `max_tokens` that fits into an answer; None without log-probabilities."""
    return None if num_top is None else MAX_PER_ANSWER // (num_answers * max(1, num_top))


class LogprobBudget:
    """Bound on the log-probabilities of all responses in preparation or transmission."""

    def __init__(self, most: int = MAX_AT_ONCE):
        self._free = most

    def reserve(self, num_logprobs: int) -> "LogprobReservation":
        """Reserve a part of the budget; HttpError (503) while other large responses hold the rest."""
        if num_logprobs > self._free:
            raise overloaded("Other answers of this size are being made.")
        self._free -= num_logprobs
        return LogprobReservation(self, num_logprobs)

    def release(self, num_logprobs: int) -> None:
        self._free += num_logprobs


class LogprobReservation:
    """Part of the budget for one response, until `close`; a second `close` has no effect."""

    def __init__(self, budget: LogprobBudget, num_logprobs: int):
        self._budget, self._num_logprobs = budget, num_logprobs

    def close(self) -> None:
        self._budget.release(self._num_logprobs)
        self._num_logprobs = 0
