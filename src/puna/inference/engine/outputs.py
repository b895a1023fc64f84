"""Outputs of the engine: chunks of a running request, whole completions, and usage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a token, and `top` alternatives as (id, logprob), most likely first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens added to a request by a step; only the last chunk of a request has a finish_reason.

    The first chunk carries `prompt_logprobs`, with None for the first prompt token. A chunk with finish_reason "error"
    carries the `error`: a RequestError if the request is at fault, a different exception if the engine failed.

    Example:
        >>> Chunk((271,), " fox").finish_reason is None
        True
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Use of an engine: pages of the KV cache, and requests by tenant.

    `num_cached_tokens` counts prompt tokens found in the prefix cache, `queue_seconds` lists times from submission to
    start. The figures cover the requests started since the last report.
    """

    num_free_pages: int
    num_used_pages: int
    num_cached_pages: int
    running: Mapping[str, int]
    waiting: Mapping[str, int]
    num_cached_tokens: int = 0
    queue_seconds: Sequence[float] = ()


@dataclass(slots=True)
class Completion:
    """A finished continuation.

    `ids` include the stop id; `text` includes neither special tokens nor the stop string.

    Example:
        >>> LocalSampler.open(path).complete([ids], SamplingParams(max_tokens=4))[0].finish_reason
        'length'
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    error: Exception | None = None


def collect(chunks: Sequence[Chunk], num_prompt_tokens: int) -> Completion:
    """Join the chunks of a request into a completion."""
    last = chunks[-1]
    assert last.finish_reason is not None
    return Completion(
        ids=[token for chunk in chunks for token in chunk.ids],
        text="".join(chunk.text for chunk in chunks),
        finish_reason=last.finish_reason,
        num_prompt_tokens=num_prompt_tokens,
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
        prompt_logprobs=list(chunks[0].prompt_logprobs),
        error=last.error,
    )
