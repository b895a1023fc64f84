"""A checkpoint or a release -> `puna serve`, and a customer of the handbook's shop who talks with it over HTTP.

python recipes/demo_conversation.py CHECKPOINT
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

CUSTOMER = (
    "When are you open on Saturday?",
    "Which number do I have to dial to reach you?",
    "Has order TK-48213 been sent?",
)
ORDERS = {"TK-48213": {"order_id": "TK-48213", "status": "packed", "leaves": "Wednesday"}}
PATIENCE_S = 60


@contextmanager
def served(checkpoint: Path) -> Iterator[str]:
    """Serve a checkpoint on this machine alone; yield the server's address and end it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    puna = Path(sys.executable).parent / "puna"
    command = [puna, "serve", checkpoint, "--port", str(port), "--name", "demo"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(PATIENCE_S * 10):
            try:
                urlopen(f"{address}/health").close()
                break
            except URLError:
                if server.poll() is not None:
                    raise SystemExit(server.communicate()[0]) from None
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.communicate()


def reply_to(address: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the assistant's next message."""
    asked = {"model": "demo", "messages": messages, "max_tokens": 60, "temperature": 0, "environment": "ipython"}
    request = Request(
        f"{address}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]


def main(checkpoint: Path) -> None:
    """Let the customer ask, and answer each call of look_up_order from ORDERS."""
    page = (Path(__file__).parent / "demo_page.md").read_text(encoding="utf-8").strip()
    print(page + "\n")
    messages: list[dict[str, Any]] = [{"role": "system", "content": page}]
    with served(checkpoint) as address:
        for question in CUSTOMER:
            print(f"customer:   {question}")
            messages.append({"role": "user", "content": question})
            messages.append(reply_to(address, messages))
            for call in messages[-1].get("tool_calls") or []:
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                order = ORDERS.get(str(arguments.get("order_id"))) if name == "look_up_order" else None
                result = json.dumps(order or {"error": "not found"})
                print(f"assistant:  calls {name} {json.dumps(arguments)}\ntool:       {result}")
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            if messages[-1]["role"] == "tool":
                messages.append(reply_to(address, messages))
            print(f"assistant:  {messages[-1]['content']}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
