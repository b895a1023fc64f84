"""Answers of the API as models: OpenAI's layouts, with exactly the fields that Puna sends."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
FinishReason = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    """A part of an answer, without undeclared fields."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    message: Annotated[str, Field(min_length=1)]
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """Every error of every route; in a stream the event before [DONE]."""

    error: ErrorDetail


class Health(Answer):
    status: Literal["ok"]


class Model(Answer):
    """`parent` is the checkpoint of an adapter; `notice` has to be shown to people ("Built with Llama")."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: Literal["puna"]
    parent: str = ""
    notice: str = ""


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class Usage(Answer):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class CalledFunction(Answer):
    name: str
    arguments: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]


class Call(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CallDelta(Call):
    """A call in a stream comes whole."""

    index: Count


class TopToken(Answer):
    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class ChatToken(TopToken):
    top_logprobs: list[TopToken]


class ChatLogprobs(Answer):
    content: list[ChatToken]


class Reply(Answer):
    """The assistant's message; `content` is null where there are calls and no text."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: Annotated[list[Call], Field(min_length=1)] = []


class ChatChoice(Answer):
    index: Count
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Answer):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: Annotated[list[CallDelta], Field(min_length=1)] = []


class ChatChunkChoice(Answer):
    index: Count
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Answer):
    """An event of a stream; with `stream_options.include_usage` the last one has no choices and the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class PromptToken(Answer):
    """A token of a prompt in vLLM's layout; rank null means beyond the requested alternatives."""

    logprob: float
    rank: int | None
    decoded_token: str


class TextChunkChoice(Answer):
    index: Count
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_logprobs: list[dict[str, PromptToken] | None] = []


class TextChoice(TextChunkChoice):
    finish_reason: Literal["stop", "length"]  # type: ignore[assignment]


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[TextChoice]
    usage: Usage


class CompletionChunk(Answer):
    """An event of a stream, in the layout of the whole answer."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class OpenApi(Answer):
    """This document."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
