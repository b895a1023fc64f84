"""Messages of a chat request, in the spellings of many clients -> the dialogue for `Conversation.from_json`.

Clients send more than OpenAI's API defines: fields of client objects, arguments as objects or null, deprecated function
calls. fields.py decides about undeclared fields.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from puna.serving.requests.checks import OPEN, refused

CallId = Annotated[str, Field(max_length=256)]
# Content parts of OpenAI's newer API: text, and reasoning before the answer.
TEXTS = {"input_text", "output_text"}
THOUGHTS = {"reasoning", "redacted_thinking", "thinking"}
MEDIA = {
    "audio",
    "document",
    "file",
    "image",
    "image_url",
    "input_audio",
    "input_file",
    "input_image",
    "video",
    "video_url",
}
# Other names of a call's arguments: LangChain's, Llama's own, and Anthropic's.
ARGUMENTS = ("args", "parameters", "input")


class TextPart(BaseModel):
    """A part of a content: text, or the words of a refusal."""

    model_config = OPEN

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _check_text(self) -> "TextPart":
        if self.written is None:
            raise refused("", f"a part of type {self.type} without {self.type}")
        return self

    @property
    def written(self) -> str | None:
        return self.text if self.type == "text" else self.refusal


class SpelledPart(BaseModel):
    """A part as other programs spell it."""

    model_config = OPEN

    type: Literal["input_text", "output_text", "reasoning", "redacted_thinking", "thinking"] | None = None
    text: str | None = None


def _spelled(part: Any) -> Any:
    """Return a part in OpenAI's spelling.

    Example:
        >>> _spelled({"type": "thinking", "thinking": "Nine?"})
        {'type': 'text', 'text': '', 'thinking': {'thinking': 'Nine?'}}
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = _kind(part)
    if kind in THOUGHTS:
        return {"type": "text", "text": "", kind: {name: part[name] for name in part if name != "type"}}
    is_bare = isinstance(part, dict) and [name for name in part if part[name] is not None] == ["text"]
    return {**part, "type": "text"} if kind in TEXTS or is_bare else part


def _kind(part: Any) -> str:
    """Return the type of a content's part, or nothing."""
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


Part = Annotated[TextPart, BeforeValidator(_spelled, json_schema_input_type=str | TextPart | SpelledPart)]
Content = str | Annotated[list[Part], Field(fail_fast=True, max_length=1024)]


class FunctionCall(BaseModel):
    """A call by a model; any name is valid, since clients also send back calls with wrong names."""

    model_config = OPEN

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    arguments: str | dict[str, Any] | Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_spelling(cls, call: Any) -> Any:
        if not isinstance(call, dict) or call.get("arguments") is not None:
            return call
        name = next((name for name in ARGUMENTS if call.get(name) is not None), "arguments")
        return {key: call[key] for key in call if key != name} | {"arguments": call.get(name)}

    def to_json(self) -> dict[str, Any]:
        """Return the call for Conversation.from_json, with arguments as an object or JSON text.

        Clients also write missing arguments as "", null, "null" or [] (PHP's empty object), or encode twice.

        Example:
            >>> FunctionCall(name="now", arguments="null").to_json()
            {'name': 'now', 'arguments': {}}
        """
        arguments = self.arguments
        for _ in range(2):
            if not isinstance(arguments, str):
                break
            decoded = _decoded(arguments)
            if not (isinstance(decoded, str) or decoded in (None, [])):
                break
            arguments = decoded
        return {"name": self.name, "arguments": arguments or {}}


def _decoded(arguments: str) -> Any:
    """Decode arguments; False for invalid JSON, which Conversation.from_json reports with the place."""
    try:
        return json.loads(arguments) if arguments.strip() else None
    except (ValueError, RecursionError):
        return False


class ToolCallPart(BaseModel):
    model_config = OPEN

    id: CallId | None = None
    type: Literal["function"] | None = None
    function: FunctionCall

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id or "", "type": "function", "function": self.function.to_json()}


class FlatCall(FunctionCall):
    """A call without the envelope `function`, in the spelling of trainers and some clients."""

    id: CallId | None = None
    type: Literal["function", "tool_call"] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id or "", "type": "function", "function": super().to_json()}


class SystemMessage(BaseModel):
    model_config = OPEN

    role: Literal["system", "developer"]
    content: Content

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": _text(self.content)}


class UserMessage(BaseModel):
    model_config = OPEN

    role: Literal["user"]
    content: Content

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": _text(self.content)}


class AssistantMessage(BaseModel):
    """A message of an assistant; `prefix` and `partial` mark a last message for continuation."""

    model_config = OPEN

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCallPart | FlatCall], Field(fail_fast=True, max_length=128)] | None = None
    function_call: FunctionCall | None = None
    prefix: bool | None = None
    partial: bool | None = None

    def to_json(self) -> dict[str, Any]:
        calls = [call.to_json() for call in self.tool_calls or []]
        if self.function_call and not calls:
            calls = [{"type": "function", "function": self.function_call.to_json()}]
        return {"role": self.role, "content": _text(self.content) or self.refusal or "", "tool_calls": calls}


ToolContent = Content | dict[str, Any] | list[Any] | None


def _written(content: Any) -> Any:
    """Return the result of a call as text for the prompt: objects and lists of data become JSON.

    Example:
        >>> _written([{"state": "sent"}]), _written([{"type": "text", "text": "sent"}])
        ('[{"state": "sent"}]', [{'type': 'text', 'text': 'sent'}])
    """
    known = {"text", "refusal", *TEXTS, *THOUGHTS, *MEDIA}
    is_list = isinstance(content, list)
    if is_list and (not content or any(_kind(item) in known for item in content)):
        return content
    return json.dumps(content, ensure_ascii=False) if is_list or isinstance(content, dict) else content


class ToolMessage(BaseModel):
    """The result of a call; of role `function` in the deprecated spelling."""

    model_config = OPEN

    role: Literal["tool", "function"]
    content: Annotated[Content | None, BeforeValidator(_written, json_schema_input_type=ToolContent)] = None
    tool_call_id: CallId | None = None
    name: Annotated[str, Field(max_length=4096)] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "role": "tool",
            "content": _text(self.content),
            "tool_call_id": self.tool_call_id or "",
            "name": self.name,
        }


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def _text(content: Content | None) -> str:
    if isinstance(content, list):
        return "".join(part.written or "" for part in content)
    return content or ""
