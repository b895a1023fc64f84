"""OGX's client (Llama Stack's successor): models, chat with a tool and its result, a stream, the old endpoint."""

import os
import sys

from ogx_client import OgxClient

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
    client = OgxClient(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
    hello = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is order 4711?"}]
    client.models.list()
    common = {"model": "tiny", "max_tokens": MAX_TOKENS, "temperature": 0.0}
    client.chat.completions.create(messages=hello, **common)
    message = client.chat.completions.create(messages=hello, tools=[TOOL], **common).choices[0].message
    for sent in (message.to_dict(), message.model_dump()):
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "on its way"}
            for call in sent.get("tool_calls") or []
        ]
        client.chat.completions.create(messages=[*hello, sent, *results], tools=[TOOL], **common)
    for _ in client.chat.completions.create(messages=hello, stream=True, **common):
        pass
    client.completions.create(model="tiny", prompt="We open", max_tokens=8)


main(sys.argv[1])
