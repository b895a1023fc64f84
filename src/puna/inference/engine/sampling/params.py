"""Sampling parameters of one request."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.pipeline.errors import RequestError

if TYPE_CHECKING:
    from puna.inference.engine.grammar.grammar import Grammar

MAX_TOKENS = 1 << 20
MAX_TEMPERATURE = 100.0
MAX_LOGPROBS = 1024
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_LEN = 4096
MAX_TOP_K = 1 << 20
MAX_REPETITION_PENALTY = 100.0
MAX_PENALTY = 2.0  # Of presence and of frequency, as in OpenAI's API.
MAX_BIAS = 100.0
MAX_BIASES = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of a request; sampling/sampler.py documents the order of operations.

    Args:
        max_tokens: Longest answer; 0 only scores the prompt, with `echo_logprobs`.
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_p: Probability mass of the nucleus.
        stop_ids: Token ids for the end of the answer.
        stop_strings: Texts that end the answer and are cut from it.
        seed: Seed of the random numbers; equal seeds give equal tokens in any batch. None takes a fresh seed.
        logprobs: Number of alternatives beside each token's log-probability, or None for no log-probabilities.
            Log-probabilities are the model's own, before all edits of the logits.
        echo_logprobs: Whether to report log-probabilities of the prompt as well.
        top_k: Number of most likely tokens to sample from; 0 for all.
        min_p: Smallest share of the largest probability to sample from.
        repetition_penalty: Divisor of positive and factor of negative logits of tokens in prompt or answer.
        presence_penalty: Subtracted from the logits of every token in the answer.
        frequency_penalty: Subtracted from the logits for every occurrence in the answer.
        logit_bias: (token id, value added to the logit) pairs.
        banned_ids: Token ids never sampled.
        grammar: Grammar of the answer; a complete sentence of the grammar ends the answer.

    Raises:
        RequestError: A value is out of bounds; `param` names the field.

    Example:
        >>> SamplingParams(max_tokens=64, temperature=0.7, seed=1).is_truncated
        False
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    echo_logprobs: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned_ids: tuple[int, ...] = ()
    grammar: "Grammar | None" = None

    def __post_init__(self) -> None:
        _within("max_tokens", self.max_tokens, 0, MAX_TOKENS)
        _within("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _within("top_p", self.top_p, 0, 1)
        _within("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS)
        _within("seed", self.seed or 0, -(1 << 63), (1 << 63) - 1)
        _within("stop_strings", len(self.stop_strings), 0, MAX_STOP_STRINGS)
        for text in self.stop_strings:
            _within("stop_strings", len(text), 1, MAX_STOP_STRING_LEN)
        _within("top_k", self.top_k, 0, MAX_TOP_K)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        _within("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _within("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _within("logit_bias", len(self.logit_bias), 0, MAX_BIASES)
        for token, bias in self.logit_bias:
            _within(f"logit_bias of {token}", bias, -MAX_BIAS, MAX_BIAS, param="logit_bias")

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def is_truncated(self) -> bool:
        """Whether top_p, top_k or min_p restrict sampling to likely tokens."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def _within(name: str, value: float, least: float, most: float, *, param: str = "") -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise RequestError(f"{name} = {value!r}", expected=f"{least} to {most}", param=param or name)
