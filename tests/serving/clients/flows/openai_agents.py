"""OpenAI's Agents SDK over chat completions: an agent with a tool, streamed and not."""

import asyncio
import os
import sys

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "24"))


@function_tool
def find_order(number: str) -> str:
    """Find an order by its number."""
    return "on its way"


async def main(url: str) -> None:
    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel("tiny", AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
    settings = ModelSettings(max_tokens=MAX_TOKENS, temperature=0.0)
    agent = Agent(name="Shop", instructions="Be brief.", model=model, tools=[find_order], model_settings=settings)
    await Runner.run(agent, "Where is order 4711?", max_turns=3)
    async for _ in Runner.run_streamed(agent, "Where is order 4711?", max_turns=3).stream_events():
        pass


asyncio.run(main(sys.argv[1]))
