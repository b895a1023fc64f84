"""A small server with the API of OpenAI and vLLM over a checkpoint, with the faults that real ones have."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.compare import logits_of


@dataclass
class Fake:
    """What it can do and what it does wrong; `bodies` are the requests that it answered."""

    checkpoint: Path
    scores_by: str = "prompt_logprobs"  # or "echo_ids", "echo", "nothing"
    max_logprobs: int = 1000
    answer: str = "Yes, we open at nine."
    answer_tokenizer: Tokenizer | None = None
    finish_reason: str = "stop"
    key: str = ""
    faults: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    gone: int | None = None  # answers after which it is no longer there

    def __post_init__(self) -> None:
        opened = Checkpoint.open(self.checkpoint)
        self.model, self.tokenizer = opened.load(), opened.tokenizer()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/chat/completions"):
            return 200, {"choices": [self._chat(body)]}
        if self.scores_by == "nothing":
            return 404, {"error": {"message": "no such route"}}
        wanted = body.get("prompt_logprobs") or body.get("logprobs") or 0
        if wanted > self.max_logprobs:
            return 400, {"error": {"message": f"{wanted} logprobs, greater than max allowed: {self.max_logprobs}"}}
        ids = body["prompt"]
        log_TV = F.log_softmax(logits_of(self.model, ids, self.checkpoint), dim=-1)
        rows: list[Any] = [None]
        for position, token in enumerate(ids[1:]):
            top = log_TV[position].topk(wanted)
            rows.append(
                {
                    token: log_TV[position, token].item(),
                    **dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
                }
            )
        choice: dict[str, Any] = {"text": "", "logprobs": None, "finish_reason": "length"}
        if "prompt_logprobs" in body and self.scores_by == "prompt_logprobs":
            choice["prompt_logprobs"] = [
                row and {str(t): {"logprob": v, "rank": 1, "decoded_token": self._text(t)} for t, v in row.items()}
                for row in rows
            ]
        elif body.get("echo") and self.scores_by.startswith("echo"):
            is_ids = self.scores_by == "echo_ids" and body.get("return_tokens_as_token_ids")
            name = (lambda token: f"token_id:{token}") if is_ids else self._text
            choice["logprobs"] = {
                "tokens": [*map(name, ids), "x"],
                "token_logprobs": [row and row[t] for row, t in zip(rows, ids, strict=True)] + [-1.0],
                "top_logprobs": [row and {name(t): v for t, v in row.items()} for row in rows] + [{"x": -1.0}],
            }
        return 200, {"choices": [choice]}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = [{k: v for k, v in message.items() if k != "name"} for message in body["messages"]]
        prompt = ChatFormat(self.tokenizer).prompt(Conversation.from_json({"messages": messages}))
        speaker = self.answer_tokenizer or self.tokenizer
        ids = self.tokenizer.encode(self.answer)
        log_TV = F.log_softmax(logits_of(self.model, prompt + ids, self.checkpoint), dim=-1)
        content = []
        for place, token in enumerate(speaker.encode(self.answer)):
            row = log_TV[min(len(prompt) - 1 + place, len(log_TV) - 1)]
            top = row.topk(body["top_logprobs"])
            told = [self._entry(t, v) for t, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
            spelled = list(speaker.decode_bytes([token]))
            value = row[token].item() if speaker is self.tokenizer else -1.0
            content.append({"token": "?", "bytes": spelled, "logprob": value, "top_logprobs": told})
        message = {"role": "assistant", "content": self.answer}
        return {"message": message, "finish_reason": self.finish_reason, "logprobs": {"content": content}}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token), "bytes": list(self.tokenizer.decode_bytes([token])), "logprob": logprob}


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """Serve it on this machine; yield the URL up to /v1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fault = fake.faults.pop(0) if fake.faults else ""
            if fault == "drop" or (fake.gone is not None and len(fake.bodies) >= fake.gone):
                self.connection.close()
                return
            if fault == "garbage":
                self._send(200, b"<html>")
            elif fault == "redirect":
                self.send_response(307)
                self.send_header("location", "http://127.0.0.1:1/v1/completions")
                self.send_header("content-length", "0")
                self.end_headers()
            elif fault:
                self._send(int(fault), json.dumps({"error": {"message": "too busy"}}).encode())
            elif fake.key and self.headers["authorization"] != f"Bearer {fake.key}":
                self._send(401, json.dumps({"error": {"message": "bad key"}}).encode())
            else:
                status, answer = fake.reply(self.path, body)
                fake.bodies.append(body)
                self._send(status, json.dumps(answer).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
