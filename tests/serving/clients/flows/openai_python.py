"""OpenAI's Python client: plain, streamed, messages sent back in four spellings, parsed answers, completions."""

import asyncio
import os
import sys
from typing import Literal

import openai
from pydantic import BaseModel

MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "24"))

HI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Order 4711?"}]},
]


class FindOrder(BaseModel):
    """Find an order."""

    number: Literal["4711"]


class Hours(BaseModel):
    opens: Literal["at nine"]


def loop(client: openai.OpenAI, message, tools: list) -> None:
    for sent in (message, message.model_dump(), message.model_dump(exclude_none=True), message.to_dict()):
        calls = message.tool_calls or []
        results = [{"role": "tool", "tool_call_id": call.id, "content": "on its way"} for call in calls]
        messages = [*HI, sent, *(results or [{"role": "user", "content": "Thanks"}])]
        client.chat.completions.create(model="tiny", messages=messages, tools=tools, max_completion_tokens=12)


def main(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    tools = [openai.pydantic_function_tool(FindOrder)]
    common = {"model": "tiny", "max_tokens": MAX_TOKENS, "temperature": 0.0}
    client.models.list()
    plain = client.chat.completions.create(messages=HI, n=1, seed=7, user="u-1", stop=["\n\n"], **common)
    loop(client, plain.choices[0].message, tools)
    called = client.chat.completions.create(messages=HI, tools=tools, tool_choice="required", **common)
    loop(client, called.choices[0].message, tools)
    parsed = client.chat.completions.parse(messages=HI, tools=tools, tool_choice="required", **common)
    loop(client, parsed.choices[0].message, tools)
    with client.chat.completions.stream(
        messages=HI, tools=tools, tool_choice="required", stream_options={"include_usage": True}, **common
    ) as stream:
        loop(client, stream.get_final_completion().choices[0].message, tools)
    formed = client.chat.completions.parse(messages=HI, response_format=Hours, **common)
    loop(client, formed.choices[0].message, tools)
    for _ in client.chat.completions.create(messages=HI, stream=True, metadata={"shop": "alba"}, **common):
        pass
    client.chat.completions.create(messages=HI, reasoning_effort="low", verbosity="low", store=False, **common)
    client.completions.create(model="tiny", prompt="We open", max_tokens=8, logprobs=2, echo=True)
    client.completions.create(model="tiny", prompt=["We open", "We close"], max_tokens=8, best_of=1)
    asyncio.run(
        openai.AsyncOpenAI(base_url=url, api_key="none").chat.completions.create(
            messages=HI,
            logprobs=True,
            top_logprobs=2,
            parallel_tool_calls=False,
            tools=tools,
            tool_choice="none",
            **common,
        )
    )


main(sys.argv[1])
