"""A scripted endpoint: an HTTP server with the API of OpenAI and vLLM and with the faults of real servers."""

import json
import threading
from collections.abc import Callable, Iterator
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
class ScriptedEndpoint:
    """The abilities, the answer and the faults of a scripted endpoint.

    Chat completions always return `answer`, with log-probabilities computed by the checkpoint. Completions return the
    log-probabilities of a prompt's tokens in a dialect of real servers.

    Args:
        checkpoint: Directory of the checkpoint that computes log-probabilities.
        scores_by: Dialect of prompt log-probabilities: "prompt_logprobs" as in vLLM, "echo_ids" or "echo" as in
            OpenAI's completions (token ids or texts), "nothing" for a server without any.
        max_logprobs: Largest number of alternatives for a token; a request for more is answered with status 400.
        answer: Text of every chat completion.
        answer_tokenizer: Tokenizer of the answer, if different from the checkpoint's.
        finish_reason: The `finish_reason` of every chat completion.
        key: API key required in requests; empty for no key.
        faults: Faults of the next requests, in order: "drop" closes the connection, "garbage" sends HTML, "redirect"
            sends status 307, a number sends that status, "" answers as usual.
        bodies: Bodies of the answered requests.
        num_answers: Number of requests after which the endpoint drops every connection.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from puna.testing import tiny_checkpoint
        >>> path = Path(mkdtemp()) / "model"
        >>> model = tiny_checkpoint.save(path)
        >>> endpoint = ScriptedEndpoint(path, answer="At nine.", faults=["503"])
        >>> with serving(endpoint) as url:
        ...     pass  # the first request fails with status 503, the second is answered
    """

    checkpoint: Path
    scores_by: str = "prompt_logprobs"
    max_logprobs: int = 1000
    answer: str = "Yes, we open at nine."
    answer_tokenizer: Tokenizer | None = None
    finish_reason: str = "stop"
    key: str = ""
    faults: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_answers: int | None = None

    def __post_init__(self) -> None:
        opened = Checkpoint.open(self.checkpoint)
        self.model, self.tokenizer = opened.load(), opened.tokenizer()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the HTTP status and the JSON value that answer a request."""
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
        for index, token in enumerate(speaker.encode(self.answer)):
            row = log_TV[min(len(prompt) - 1 + index, len(log_TV) - 1)]
            top = row.topk(body["top_logprobs"])
            alternatives = [self._entry(t, v) for t, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
            spelling = list(speaker.decode_bytes([token]))
            value = row[token].item() if speaker is self.tokenizer else -1.0
            content.append({"token": "?", "bytes": spelling, "logprob": value, "top_logprobs": alternatives})
        message = {"role": "assistant", "content": self.answer}
        return {"message": message, "finish_reason": self.finish_reason, "logprobs": {"content": content}}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token), "bytes": list(self.tokenizer.decode_bytes([token])), "logprob": logprob}


@contextmanager
def listening(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server on a free port of 127.0.0.1 for the length of the block; yield the address of the server.

    Example:
        >>> with listening(BaseHTTPRequestHandler) as url:
        ...     pass  # every request to `url` is answered with status 501
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(endpoint: ScriptedEndpoint) -> Iterator[str]:
    """Serve an endpoint on a free port of 127.0.0.1 for the length of the block; yield the URL up to and with `/v1`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fault = endpoint.faults.pop(0) if endpoint.faults else ""
            if fault == "drop" or (endpoint.num_answers is not None and len(endpoint.bodies) >= endpoint.num_answers):
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
            elif endpoint.key and self.headers["authorization"] != f"Bearer {endpoint.key}":
                self._send(401, json.dumps({"error": {"message": "bad key"}}).encode())
            else:
                status, answer = endpoint.reply(self.path, body)
                endpoint.bodies.append(body)
                self._send(status, json.dumps(answer).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with listening(Handler) as url:
        yield f"{url}/v1"
