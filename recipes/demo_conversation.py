"""A checkpoint -> a short conversation with a customer of the handbook's shop; orders are looked up in a list.

python recipes/demo_conversation.py CHECKPOINT
"""

import json
import sys
from pathlib import Path

from puna.chat import ChatFormat, Conversation, Message
from puna.engine.local import LocalSampler
from puna.engine.options import EngineOptions
from puna.engine.sampler import SamplingParams

CUSTOMER = (
    "When are you open on Saturday?",
    "Which number do I have to dial to reach you?",
    "Has order TK-48213 been sent?",
)
ORDERS = {"TK-48213": {"order_id": "TK-48213", "status": "packed", "leaves": "Wednesday"}}


def main(checkpoint: Path) -> None:
    """Let the customer ask, and answer each call of look_up_order from ORDERS."""
    sampler = LocalSampler.open(checkpoint, options=EngineOptions(max_batch=1))
    chat = ChatFormat(sampler.tokenizer)
    params = SamplingParams(max_tokens=60, stop_ids=chat.stop_ids)
    page = (Path(__file__).parent / "demo_page.md").read_text().strip()
    print(page + "\n")
    conversation = Conversation((Message("system", page),), environment="ipython")
    for question in CUSTOMER:
        print(f"customer:   {question}")
        conversation = conversation.with_message(Message("user", question))
        reply = chat.parse(sampler.complete([chat.prompt(conversation)], params)[0].ids)
        conversation = conversation.with_message(reply)
        if reply.tool_calls:
            call = reply.tool_calls[0]
            order = ORDERS.get(str(call.arguments.get("order_id"))) if call.name == "look_up_order" else None
            result = json.dumps(order or {"error": "not found"})
            print(f"assistant:  calls {call.name} {json.dumps(call.arguments)}\ntool:       {result}")
            conversation = conversation.with_message(Message("tool", result))
            reply = chat.parse(sampler.complete([chat.prompt(conversation)], params)[0].ids)
            conversation = conversation.with_message(reply)
        print(f"assistant:  {reply.content}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
