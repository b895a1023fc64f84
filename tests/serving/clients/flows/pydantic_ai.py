"""Pydantic AI over chat completions: an agent with a tool, streamed and not, and with a structured answer."""

import asyncio
import os
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "24"))


class Hours(BaseModel):
    opens: Literal["at nine"]


async def main(url: str) -> None:
    model = OpenAIChatModel("tiny", provider=OpenAIProvider(base_url=url, api_key="none"))
    settings = {"max_tokens": MAX_TOKENS, "temperature": 0.0}
    agent = Agent(model, instructions="Be brief.", model_settings=settings)

    @agent.tool_plain
    def find_order(number: Literal["4711"], note: str | None = None) -> dict[str, str]:
        """Find an order by its number."""
        return {"state": "on its way"}

    result = await agent.run("Where is order 4711?")
    await agent.run("Thanks", message_history=result.all_messages())
    async with agent.run_stream("Where is order 4711?") as stream:
        await stream.get_output()
    await Agent(model, output_type=NativeOutput(Hours), model_settings=settings).run("When do you open?")


asyncio.run(main(sys.argv[1]))
