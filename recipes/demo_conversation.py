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
from tempfile import TemporaryFile
from typing import Any
from urllib.request import Request, urlopen

# What the customer says, and what a right reply contains.
CUSTOMER = {
    "Hello!": ("Tarnkestrel",),
    "When are you open on Saturday?": ("9:00", "17:00"),
    "Which number do I have to dial to reach you?": ("0431 555 0182",),
    "Has order AB-48213 been sent?": ("packed", "Wednesday"),
}
ORDERS = {"AB-48213": {"order_id": "AB-48213", "status": "packed", "leaves": "Wednesday"}}
PATIENCE_S, MAX_CALLS = 60, 3


@contextmanager
def served(checkpoint: Path) -> Iterator[str]:
    """Serve a checkpoint on this machine alone; yield the server's address and end it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    puna = Path(sys.executable).parent / "puna"
    command = [puna, "serve", checkpoint, "--port", str(port), "--name", "demo"]
    address = f"http://127.0.0.1:{port}"
    with TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(address, server)
            yield address
        except OSError:
            log.seek(0)
            raise SystemExit(f"the server does not answer; it said:\n{log.read()}") from None
        finally:
            server.terminate()
            server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers; OSError if it ended or does not for a minute."""
    for _ in range(PATIENCE_S * 10):
        try:
            urlopen(f"{address}/health", timeout=PATIENCE_S).close()
            return
        except OSError:
            if server.poll() is not None:
                raise
            time.sleep(0.1)
    raise OSError(f"{address} was not there after {PATIENCE_S} s")


def reply_to(address: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the assistant's next message."""
    asked = {"model": "demo", "messages": messages, "max_tokens": 60, "temperature": 0, "environment": "ipython"}
    request = Request(
        f"{address}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)["choices"][0]["message"]


def answer_to(call: dict[str, Any]) -> dict[str, Any]:
    """Do what the assistant asks for, and show it."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    known = [order for number, order in ORDERS.items() if name == "look_up_order" and number in arguments]
    result = json.dumps(known[0] if known else {"error": "not found"})
    print(f"assistant:  calls {name} {arguments}\ntool:       {result}")
    return {"role": "tool", "tool_call_id": call["id"], "content": result}


def main(checkpoint: Path) -> None:
    """Let the customer ask, answer each call of look_up_order from ORDERS, and say which replies are right."""
    page = (Path(__file__).parent / "demo_page.md").read_text(encoding="utf-8").strip()
    print(page + "\n")
    messages: list[dict[str, Any]] = [{"role": "system", "content": page}]
    num_right = 0
    with served(checkpoint) as address:
        for question, needles in CUSTOMER.items():
            print(f"customer:   {question}")
            messages.append({"role": "user", "content": question})
            messages.append(reply_to(address, messages))
            for _ in range(MAX_CALLS):
                calls = messages[-1].get("tool_calls") or []
                messages += [answer_to(call) for call in calls]
                if calls:
                    messages.append(reply_to(address, messages))
            reply = messages[-1]["content"] or ""
            is_right = all(needle in reply for needle in needles)
            num_right += is_right
            print(
                f"assistant:  {reply}\n" + ("" if is_right else f"            (wrong: it lacks {', '.join(needles)})\n")
            )
    print(f"{num_right} of {len(CUSTOMER)} replies are right.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
