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
    """How to continue a prompt; a value out of bounds raises RequestError naming the field.

    `temperature` 0 takes the most likely token. `top_k` 0 keeps every token; `min_p` keeps those with at least that
    share of the largest probability. `repetition_penalty` divides positive logits of what the prompt or the answer
    holds, and multiplies negative ones; `presence_penalty` and `frequency_penalty` are subtracted for what the answer
    holds, once and once a time. `logit_bias` adds to the logits of ids; `banned_ids` are never sampled; `grammar`
    admits only what continues to a sentence of it, and its end ends the answer. sampling/sampler.py has the order.

    `logprobs` is the number of alternatives to report beside each chosen token (0: the chosen one only; None: no
    log-probabilities). Log-probabilities are those of the model, before all of the above. `echo_logprobs` reports the
    prompt's as well, and with `max_tokens` 0 nothing else is done. The same `seed` gives the same tokens whatever else
    is being sampled; None takes a fresh one.
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
        """Whether only some of the tokens are sampled from, the most likely ones."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def _within(name: str, value: float, least: float, most: float, *, param: str = "") -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise RequestError(f"{name} = {value!r}", expected=f"{least} to {most}", param=param or name)
