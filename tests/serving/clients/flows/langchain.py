"""LangChain's ChatOpenAI: invoke, stream, tools and their results, structured output by schema and by function."""

import os
import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "24"))


@tool
def find_order(number: Literal["4711"], note: str | None = None) -> str:
    """Find an order by its number."""
    return "on its way"


class Hours(BaseModel):
    """When a shop opens."""

    opens: Literal["at nine"] = Field(description="time of opening")


def main(url: str) -> None:
    model = ChatOpenAI(model="tiny", base_url=url, api_key="none", max_tokens=MAX_TOKENS, temperature=0, max_retries=0)
    messages = [SystemMessage("Be brief."), HumanMessage("Where is order 4711?", name="zoe")]
    model.invoke(messages)
    for _ in model.stream(messages, stream_usage=True):
        pass
    bound = model.bind_tools([find_order])
    called = bound.invoke(messages)
    results = [ToolMessage("on its way", tool_call_id=call["id"], name=call["name"]) for call in called.tool_calls]
    bound.invoke([*messages, called, *results])
    streamed = None
    for chunk in bound.stream(messages):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    results = [ToolMessage("on its way", tool_call_id=call["id"]) for call in streamed.tool_calls]
    bound.invoke([*messages, streamed, *results])
    model.bind_tools([find_order], tool_choice="find_order", strict=True, parallel_tool_calls=False).invoke(messages)
    model.invoke([*messages, AIMessage("At nine."), HumanMessage([{"type": "text", "text": "Thanks"}])])
    model.batch([messages, messages], stop=["\n\n"])
    OpenAI(model="tiny", base_url=url, api_key="none", max_tokens=8).invoke("We open")
    for method in ("json_schema", "function_calling", "json_mode"):
        model.with_structured_output(Hours, method=method, include_raw=True).invoke(messages)


main(sys.argv[1])
