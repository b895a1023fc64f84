"""A stand-in for an OpenAI-compatible server that keeps every request, with which record.py learns what clients send.

Answers a conversation that offers tools and holds no tool result with one tool call, every other one with text. Puna
takes no part.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

TEXT = '{"opens": "at nine"}'
VALUES = {"number": "4711", "opens": "at nine"}  # by the names of the tools' parameters
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def is_call(body: dict[str, Any]) -> bool:
    """Tell whether the answer is a tool call: tools are offered, and no tool has been called yet."""
    roles = [message.get("role") for message in body["messages"]]
    return bool(body.get("tools")) and body.get("tool_choice") != "none" and "tool" not in roles


def chat_answer(body: dict[str, Any]) -> dict[str, Any]:
    """Build a whole chat completion."""
    if is_call(body):
        function = body["tools"][0]["function"]
        wanted = {name: VALUES[name] for name in function["parameters"]["properties"] if name in VALUES}
        call = {"type": "function", "function": {"name": function["name"], "arguments": json.dumps(wanted)}}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", **call}]}
    else:
        message = {"role": "assistant", "content": TEXT, "refusal": None}
    reason = "tool_calls" if is_call(body) else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {"object": "chat.completion", "choices": [choice], "usage": USAGE}


def chat_events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a streamed chat completion."""
    whole = chat_answer(body)["choices"][0]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if calls := whole["message"].get("tool_calls"):
        deltas.append({"tool_calls": [{"index": 0, **calls[0]}]})
    else:
        deltas += [{"content": TEXT[:8]}, {"content": TEXT[8:]}]
    for delta in deltas:
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": whole["finish_reason"]}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {"choices": [], "usage": USAGE}


def completion_answer(body: dict[str, Any]) -> dict[str, Any]:
    """Build a completion for one prompt or several, with the prompt's log-probabilities where `echo` asks for them."""
    prompt = body["prompt"]
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    choices = []
    for index, each in enumerate(prompts):
        num_tokens = len(each) if isinstance(each, list) else max(1, len(each) // 4)
        logprobs = {
            "tokens": ["a"] * num_tokens,
            "token_logprobs": [None, *[-1.0] * (num_tokens - 1)],
            "top_logprobs": [None, *[{"a": -1.0}] * (num_tokens - 1)],
            "text_offset": list(range(num_tokens)),
        }
        wanted = logprobs if body.get("logprobs") is not None else None
        choices.append({"index": index, "text": " at nine", "logprobs": wanted, "finish_reason": "stop"})
    return {"object": "text_completion", "choices": choices, "usage": USAGE}


class Recorder(BaseHTTPRequestHandler):
    """Answers as above and appends {method, path, body} to `recorded`."""

    protocol_version = "HTTP/1.1"
    recorded: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        model = {"id": "tiny", "object": "model", "created": 0, "owned_by": "stub"}
        self._record(None)
        self._send({"object": "list", "data": [model]} if self.path.endswith("/models") else model)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._record(body)
        head = {"id": "answer-1", "created": 0, "model": body.get("model", "tiny")}
        if self.path.endswith("/chat/completions") and body.get("stream"):
            events = [{**head, "object": "chat.completion.chunk", **event} for event in chat_events(body)]
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self._send(lines, "text/event-stream")
        elif self.path.endswith("/chat/completions"):
            self._send(head | chat_answer(body))
        elif self.path.endswith("/completions"):
            self._send(head | completion_answer(body))
        else:
            self.send_error(404)

    def _record(self, body: Any) -> None:
        self.recorded.append({"method": self.command, "path": self.path, "body": body})

    def _send(self, payload: Any, kind: str = "application/json") -> None:
        content = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
