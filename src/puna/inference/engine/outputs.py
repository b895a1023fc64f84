"""Outputs of the engine: chunks of a request as they are generated, whole completions, and usage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from puna.pipeline.errors import RequestError

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the `top` alternatives as (id, logprob), most likely first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added to a request. The last chunk of a request, and no other, has a finish_reason.

    `prompt_logprobs` come once, in the first chunk; the first prompt token has none. `error` says why a request ended
    with finish_reason "error"; `refusal` is that reason as an object where the request itself is at fault.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    error: str = ""
    refusal: RequestError | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of an engine is in use: pages of the KV cache, and requests by tenant.

    `num_cached_tokens` counts prompt tokens that were found in the cache, `queue_seconds` holds the times from
    submission to start; both are those of requests that have started since the last report.
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
    """A finished continuation: `ids` end with the stop id if there was one; `text` without specials and stop string."""

    ids: list[int]
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    error: str = ""


def collect(chunks: Sequence[Chunk], num_prompt_tokens: int) -> Completion:
    """Join all the chunks of one request into its completion."""
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
