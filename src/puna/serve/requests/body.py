"""Fields that both endpoints take: strict types, every number and list bounded."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from puna.config import suggestion
from puna.engine.sampler import MAX_BIAS, MAX_BIASES, MAX_PENALTY, MAX_REPETITION_PENALTY, MAX_TOP_K
from puna.serve.requests.checks import STRICT, json_problem, refused
from puna.serve.requests.forms import ResponseFormat

Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
WrittenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Biases = Annotated[dict[WrittenId, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]], Field(max_length=MAX_BIASES)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    model_config = STRICT

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Body(BaseModel):
    """What both endpoints take."""

    model_config = STRICT

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1 / MAX_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    response_format: Annotated[ResponseFormat, Field(discriminator="type")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_json(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name in body:
                if name not in cls.model_fields:
                    hint = suggestion(name, list(cls.model_fields)) or "Puna would not act on it."
                    raise refused(name, f"Unknown or unsupported field {ascii(name)[:80]}. {hint}")
            for name, value in body.items():
                if problem := json_problem(value):
                    raise refused(name, f"{name}: {problem}")
        return body

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
