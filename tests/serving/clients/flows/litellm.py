"""LiteLLM as a library: chat, a stream, a tool with its result in the form that LiteLLM returns."""

import os
import sys

import litellm

MAX_TOKENS = int(os.environ.get("MAX_TOKENS", "24"))

TOOL = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Find an order",
        "parameters": {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]},
    },
}


def main(url: str) -> None:
    common = {"model": "openai/tiny", "api_base": url, "api_key": "none", "max_tokens": MAX_TOKENS, "temperature": 0.0}
    hello = [{"role": "user", "content": "Where is order 4711?"}]
    message = litellm.completion(messages=hello, tools=[TOOL], tool_choice="auto", **common).choices[0].message
    for sent in (message, message.model_dump()):
        results = [
            {"role": "tool", "tool_call_id": call.id, "name": "find_order", "content": "ok"}
            for call in message.tool_calls or []
        ]
        litellm.completion(messages=[*hello, sent, *results], tools=[TOOL], **common)
    for _ in litellm.completion(messages=hello, stream=True, stream_options={"include_usage": True}, **common):
        pass
    litellm.text_completion(
        model="text-completion-openai/tiny", prompt="We open", api_base=url, api_key="none", max_tokens=8
    )


main(sys.argv[1])
