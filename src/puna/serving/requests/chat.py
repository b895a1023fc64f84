"""POST /v1/chat/completions: the body as JSON -> a checked request."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, Field, WrapValidator, model_validator

from puna.formats.chat.padding import without_padding
from puna.inference.engine.sampling.params import MAX_TOKENS
from puna.serving.requests.body import Body, Spelling
from puna.serving.requests.checks import refused
from puna.serving.requests.messages import AssistantMessage, ChatMessage
from puna.serving.requests.tools import NamedChoice, Tool, keep_as_given, shown_tool

NEW_TURN = (
    "messages end with an assistant message, and the answer is another one; "
    "continue_final_message continues the last one"
)


class ChatRequest(Body):
    """POST /v1/chat/completions.

    `environment`, `today`, `builtin_tools` and `call_format` are Puna's own fields, for the rendering of the prompt.
    `continue_final_message`, `add_generation_prompt` and `echo` are vLLM's.
    """

    SPELLINGS: ClassVar[dict[str, Spelling]] = Body.SPELLINGS | {
        "max_tokens": (-1, None, "all that fit"),
        "max_completion_tokens": (-1, None, "all that fit"),
    }

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    tools: (
        Annotated[list[Annotated[Tool, WrapValidator(keep_as_given)]], Field(fail_fast=True, max_length=128)] | None
    ) = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    echo: bool | None = None
    environment: Literal["", "ipython"] | None = None
    builtin_tools: Annotated[list[Literal["brave_search", "wolfram_alpha"]], Field(max_length=2)] | None = None
    call_format: Literal["json", "tag"] | None = None
    today: Annotated[str, Field(max_length=32)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs: only allowed when logprobs is true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise refused("max_tokens", "max_tokens differs from max_completion_tokens; give one of them")
        return self

    @model_validator(mode="after")
    def _check_continuing(self) -> "ChatRequest":
        if self.add_generation_prompt and self.continue_final_message:
            reason = "the answer either continues the last message or begins one; give one of the two"
            raise refused("continue_final_message", f"continue_final_message and add_generation_prompt: {reason}")
        if self.add_generation_prompt is False and not self.is_continuing:
            reason = "false is only allowed with continue_final_message; /v1/completions takes any prompt"
            raise refused("add_generation_prompt", f"add_generation_prompt: {reason}")
        if self.echo and not self.is_continuing:
            raise refused("echo", "echo: only allowed with continue_final_message")
        return self

    @property
    def is_continuing(self) -> bool:
        """Whether the reply continues the last message; Mistral and DeepSeek set `prefix`, Moonshot `partial`."""
        last = self.messages[-1]
        marked = isinstance(last, AssistantMessage) and (last.prefix or last.partial)
        return bool(self.continue_final_message or marked)

    @property
    def num_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def strictness(self) -> dict[str, bool]:
        """Map tool names to OpenAI's `strict`: a strict schema is enforced completely, or an error."""
        return {tool["function"]["name"]: bool(tool["function"].get("strict")) for tool in self._raw_tools}

    @property
    def _raw_tools(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self.tools or [])

    def parts(self) -> Iterator[tuple[BaseModel, str]]:
        yield from super().parts()
        for index, tool in enumerate(self._raw_tools):
            yield Tool.model_validate(tool), f"tools[{index}]"

    def remarks(self) -> Iterator[str]:
        if self.messages[-1].role == "assistant" and not self.is_continuing:
            yield NEW_TURN

    def conversation(self) -> dict[str, Any]:
        """Return the dialogue for Conversation.from_json without null padding; no tools if `tool_choice` is "none"."""
        tools = [] if self.tool_choice == "none" else self._raw_tools
        dialogue = {
            "messages": [message.to_json() for message in self.messages],
            "tools": [shown_tool(tool) for tool in tools],
            "environment": self.environment,
            "builtin_tools": self.builtin_tools,
            "call_format": self.call_format,
            "today": self.today,
        }
        return without_padding(dialogue)
