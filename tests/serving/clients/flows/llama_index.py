"""LlamaIndex's OpenAILike: complete, chat, stream, tools and their results, structured output."""

import os
import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "24"))


class Hours(BaseModel):
    """When a shop opens."""

    opens: Literal["at nine"]


def find_order(number: str) -> str:
    """Find an order by its number."""
    return "on its way"


def main(url: str) -> None:
    shared = {"model": "tiny", "api_base": url, "api_key": "none", "max_tokens": MAX_TOKENS, "max_retries": 0}
    model = OpenAILike(**shared, is_chat_model=True, is_function_calling_model=True, context_window=1024)
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Order 4711?")]
    model.chat(messages)
    for _ in model.stream_chat(messages):
        pass
    tool = FunctionTool.from_defaults(fn=find_order)
    called = model.chat_with_tools([tool], chat_history=messages)
    calls = model.get_tool_calls_from_response(called, error_on_no_tool_call=False)
    results = [
        ChatMessage(
            role="tool", content="on its way", additional_kwargs={"tool_call_id": call.tool_id, "name": call.tool_name}
        )
        for call in calls
    ]
    model.chat_with_tools([tool], chat_history=[*messages, called.message, *results])
    for _ in model.stream_chat_with_tools([tool], chat_history=messages):
        pass
    model.chat_with_tools([tool], chat_history=messages, tool_required=True)
    structured = OpenAILike(**shared, is_chat_model=True, is_function_calling_model=True, context_window=1024)
    structured.structured_predict(Hours, PromptTemplate("When?"))
    OpenAILike(**shared, is_chat_model=False, context_window=1024).complete("We open")


main(sys.argv[1])
