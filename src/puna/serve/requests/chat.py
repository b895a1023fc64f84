"""POST /v1/chat/completions: the body as JSON -> a checked request."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, WrapValidator, model_validator

from puna.engine.sampler import MAX_TOKENS
from puna.serve.requests.body import Body
from puna.serve.requests.checks import refused
from puna.serve.requests.messages import ChatMessage
from puna.serve.requests.tools import NamedChoice, Tool, keep_as_given


class ChatRequest(Body):
    """POST /v1/chat/completions. What is Puna's own says how the chat format renders: `environment`, `today`, ..."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    tools: Annotated[list[Annotated[Tool, WrapValidator(keep_as_given)]], Field(max_length=128)] | None = None
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


def _without_strict(function: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in function.items() if name != "strict"}
