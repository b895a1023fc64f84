"""POST /v1/completions: the body as JSON -> a checked request."""

from typing import Annotated, cast

from pydantic import Field, model_validator

from puna.inference.engine.sampling.params import MAX_LOGPROBS, MAX_TOKENS
from puna.serving.requests.body import Body, TokenId
from puna.serving.requests.checks import refused

MAX_PROMPTS = 256

TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_TOKENS)]


class CompletionRequest(Body):
    """POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_prompt_logprobs(self) -> "CompletionRequest":
        if self.prompt_logprobs is not None and self.stream:
            raise refused("prompt_logprobs", "prompt_logprobs: only allowed when stream is not true")
        return self

    @property
    def num_scored(self) -> int | None:
        """Number of alternatives per token: the larger of `logprobs` and `prompt_logprobs`."""
        wanted = [number for number in (self.logprobs, self.prompt_logprobs) if number is not None]
        return max(wanted, default=None)

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list, whichever of the four spellings was used."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [cast(list[int], self.prompt)]
        return cast(list[str] | list[list[int]], self.prompt)
