"""JSON of the OpenAI API -> checked requests: strict types, every number and list bounded, unknown names refused.

A field that Puna does not act on is accepted only at a value that asks for nothing; it is never ignored otherwise. What
a prompt becomes as tokens is not decided here.
"""

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from puna.config import suggestion
from puna.engine.grammar.grammar import MAX_GRAMMAR_CHARS
from puna.engine.sampler import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_TOKENS,
    MAX_TOP_K,
)

MAX_DEPTH = 64
MAX_PROMPTS = 256

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

One = Annotated[int, Field(ge=1, le=1)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
WrittenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Biases = Annotated[dict[WrittenId, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]], Field(max_length=MAX_BIASES)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class StreamOptions(BaseModel):
    model_config = STRICT

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(BaseModel):
    model_config = STRICT

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    model_config = STRICT

    type: Literal["json_object"]


class JsonSchema(BaseModel):
    """A schema that is not strict is held to as far as it can be."""

    model_config = STRICT

    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(BaseModel):
    model_config = STRICT

    type: Literal["json_schema"]
    json_schema: JsonSchema


class GrammarFormat(BaseModel):
    """Puna's own: OpenAI has these words for the input of custom tools."""

    model_config = STRICT

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat


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
                if problem := _json_problem(value):
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


class TextPart(BaseModel):
    model_config = STRICT

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]


class FunctionCall(BaseModel):
    """Looser than a Tool: what a model called can always be sent back."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    arguments: str


class ToolCallPart(BaseModel):
    model_config = STRICT

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(BaseModel):
    model_config = STRICT

    role: Literal["system", "developer"]
    content: Content
    name: None = None


class UserMessage(BaseModel):
    model_config = STRICT

    role: Literal["user"]
    content: Content
    name: None = None


class AssistantMessage(BaseModel):
    """The fields of None are those that the OpenAI client adds when a message it received is sent back."""

    model_config = STRICT

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCallPart], Field(max_length=128)] | None = None
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(BaseModel):
    model_config = STRICT

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(max_length=256)]
    name: Annotated[str, Field(max_length=256)] | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(BaseModel):
    model_config = STRICT

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = STRICT

    type: Literal["function"]
    function: Function


def _keep_as_given(value: Any, check: Any) -> Any:
    # The order of a schema's keys is part of what the model reads, and a validated Tool would lose it.
    check(value)
    return value


class NamedFunction(BaseModel):
    model_config = STRICT

    name: Name


class NamedChoice(BaseModel):
    model_config = STRICT

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Body):
    """POST /v1/chat/completions. What is Puna's own says how the chat format renders: `environment`, `today`, ..."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    tools: Annotated[list[Annotated[Tool, WrapValidator(_keep_as_given)]], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    environment: Literal["", "ipython"] = ""
    builtin_tools: list[Literal["brave_search", "wolfram_alpha"]] = Field(default=[], max_length=2)
    call_format: Literal["json", "tag"] = "json"
    today: Annotated[str, Field(max_length=32)] = ""

    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs: only allowed when logprobs is true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise refused("max_tokens", "max_tokens differs from max_completion_tokens; give one of them")
        return self

    @property
    def num_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def strictness(self) -> dict[str, bool]:
        """Say of each tool whether its schema is to be held to the letter or refused."""
        tools = cast(list[dict[str, Any]], self.tools or [])
        return {tool["function"]["name"]: bool(tool["function"].get("strict")) for tool in tools}

    def conversation(self) -> dict[str, Any]:
        """Return the dialogue for Conversation.from_json, without the tools if none may be called."""
        tools = [] if self.tool_choice == "none" else cast(list[dict[str, Any]], self.tools or [])
        return {
            "messages": [message.model_dump(exclude_none=True, exclude={"annotations"}) for message in self.messages],
            "tools": [{**tool, "function": _without_strict(tool["function"])} for tool in tools],
            "environment": self.environment,
            "builtin_tools": list(self.builtin_tools),
            "call_format": self.call_format,
            "today": self.today,
        }


TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS)]


class CompletionRequest(Body):
    """POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    best_of: One | None = None
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _check_prompt_logprobs(self) -> "CompletionRequest":
        if self.prompt_logprobs is not None and self.stream:
            raise refused("prompt_logprobs", "prompt_logprobs: only allowed when stream is not true")
        return self

    @property
    def num_scored(self) -> int | None:
        """How many alternatives the engine is to tell: as many as the layout that wants most."""
        wanted = [number for number in (self.logprobs, self.prompt_logprobs) if number is not None]
        return max(wanted, default=None)

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list, whichever of the four spellings was used."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [cast(list[int], self.prompt)]
        return cast(list[str] | list[list[int]], self.prompt)


def refused(param: str, reason: str) -> PydanticCustomError:
    """Build a validation error whose field is named in spite of coming from a check over several fields."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "param": param})


def _json_problem(value: Any) -> str:
    """Say what no field may hold at any depth: numbers beyond JSON, text beyond Unicode, bottomless nesting."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                return "a number that is not finite"
            elif isinstance(item, str) and not _is_unicode(item):
                return "text that is not valid Unicode (a lone surrogate)"
        if not below:
            return ""
        level = below
    return f"nested more than {MAX_DEPTH} levels deep"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_strict(function: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in function.items() if name != "strict"}
