"""Fields of both generation endpoints, with strict types and bounds on every number and list."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from puna.inference.engine.sampling.params import MAX_BIAS, MAX_BIASES, MAX_PENALTY, MAX_REPETITION_PENALTY, MAX_TOP_K
from puna.serving.requests.checks import OPEN, STRICT, refused
from puna.serving.requests.forms import ResponseFormat


def _require_few(biases: Any) -> Any:
    """Limit the number of biases before validation: pydantic would report every wrong bias."""
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise refused("logit_bias", f"logit_bias: {len(biases):,} tokens; expected at most {MAX_BIASES:,}")
    return biases


Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
WrittenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Biases = Annotated[
    dict[WrittenId, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_BIASES),
    BeforeValidator(_require_few),
]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


# (other programs' value, equivalent value, words for the warning)
Spelling = tuple[Any, Any, str]


class StreamOptions(BaseModel):
    model_config = OPEN

    include_usage: bool | None = None


class Body(BaseModel):
    """Fields of the two endpoints."""

    model_config = STRICT

    SPELLINGS: ClassVar[dict[str, Spelling]] = {
        "logit_bias": ([], None, "no bias"),
        "stop": ("", None, "no stop string"),
        "top_k": (-1, 0, "no limit"),
    }

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1 / MAX_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    response_format: Annotated[ResponseFormat, Field(discriminator="type")] | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> "Body":
        if self.stream_options and not self.stream:
            raise refused("stream_options", "stream_options: only allowed when stream is true")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        return tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def parts(self) -> Iterator[tuple[BaseModel, str]]:
        """Yield models of the request with places, for the search for undeclared fields."""
        yield self, ""

    def remarks(self) -> Iterator[str]:
        """Yield warnings about combinations of fields."""
        yield from ()
