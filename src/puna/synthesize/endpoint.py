"""Questions -> replies of a model behind an OpenAI-compatible endpoint, several at a time.

What may pass (too many requests, a server's error, no connection) is tried again. What a single question causes is that
question's failure; what every question would meet, such as a wrong key, ends the run, which goes on when called again.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from puna.chat.conversation import Conversation, Message
from puna.errors import ChatError, ConfigError, RequestError
from puna.synthesize.asking import Ask, How, Reply

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
PASSING = {408, 409, 425, 429, *range(500, 600)}
EVERYBODYS = {*range(300, 400), 401, 403, 404, 405}
TIMEOUT = 600.0
MAX_BYTES = 16_000_000


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Follow none: the key would go with it."""


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class EndpointModel:
    """`url` is what stands before /chat/completions; `wait` sleeps."""

    url: str
    model: str
    key: str
    how: How
    max_batch: int
    wait: Callable[[float], None] = time.sleep

    def reply(self, asks: Sequence[Ask], tell: Callable[[int], None]) -> list[Reply]:
        with ThreadPoolExecutor(self.max_batch) as threads:
            futures = [threads.submit(self._ask, ask) for ask in asks]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    tell(done)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _ask(self, ask: Ask) -> Reply:
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(self._body(ask)).encode(),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self.key}"} if self.key else {}),
        )
        problem = ""
        for attempt in range(TRIES):
            delay = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
            try:
                with _OPENER.open(request, timeout=TIMEOUT) as response:
                    return _read(response.read(MAX_BYTES))
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {_explanation(error)}"
                if error.code in EVERYBODYS:
                    hint = "Look at endpoint, model and the key"
                    raise ConfigError(f"{self.url} answers {problem}", expected="an answer", hint=hint) from None
                if error.code not in PASSING:
                    return Reply(Message("assistant"), failure=f"the endpoint refuses: {problem}")
                delay = _delay(error, delay)
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
            if attempt + 1 < TRIES:
                self.wait(delay)
        hint = "What was answered is kept: the same command goes on"
        raise RequestError(f"{self.url} does not answer ({problem})", expected=f"it within {TRIES} tries", hint=hint)

    def _body(self, ask: Ask) -> dict[str, Any]:
        conversation = ask.question.conversation
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_spelled(message) for message in conversation.messages],
            "temperature": self.how.temperature,
            "top_p": self.how.top_p,
            "max_tokens": self.how.max_tokens,
            "seed": ask.seed(self.how.seed),
        }
        return body | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _spelled(message: Message) -> dict[str, Any]:
    """Spell a message as OpenAI does: arguments are text."""
    row = message.to_json()
    for number, call in enumerate(row.get("tool_calls", [])):
        call.setdefault("id", f"call_{number}")
        call["function"] = {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])}
    if message.role == "tool":
        row.setdefault("tool_call_id", "call_0")
    return row


def _read(body: bytes) -> Reply:
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        said = {name: choice["message"].get(name) for name in ("content", "tool_calls")}
        (message,) = Conversation.from_json({"messages": [{"role": "assistant", **said}]}).messages
        num_tokens = int((data.get("usage") or {}).get("completion_tokens") or 0)
        failure = "cut off before its end" if choice.get("finish_reason") == "length" else ""
        return Reply(message, num_tokens, failure)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, ChatError) as error:
        return Reply(Message("assistant"), failure=f"the endpoint's answer cannot be read: {error}")


def _explanation(error: urllib.error.HTTPError) -> str:
    """Return the message of an error body, as far as there is one."""
    try:
        body = error.read(MAX_BYTES)
        return str(json.loads(body)["error"]["message"])[:300]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException):
        return str(error.reason)


def _delay(error: urllib.error.HTTPError, otherwise: float) -> float:
    """Return how long the server asks to wait."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(error.headers.get("Retry-After", otherwise))))
    except ValueError:
        return otherwise
