"""Messages of a chat request, as OpenAI's clients send messages -> checked values."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from puna.serve.requests.checks import STRICT


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
