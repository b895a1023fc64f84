"""Conversations -> replies of a model behind an OpenAI-compatible endpoint, several requests at a time.

Too many requests, a server's error and a lost connection are retried. A refusal of one prompt is the failure of that
prompt; an error that every prompt would meet, such as a wrong key, ends the run, which resumes when called again.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Prompt, Reply, Sampling, ignore
from puna.pipeline.errors import ChatError, ConfigError, RequestError

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
PASSING = {408, 409, 425, 429, *range(500, 600)}
EVERYBODYS = {*range(300, 400), 401, 403, 404, 405}
TIMEOUT = 600.0
MAX_BYTES = 16_000_000


def require_one_source(checkpoint: Path | None, endpoint: str, model: str, *, spelling: str = "'{}'") -> None:
    """Require a checkpoint or an endpoint with the name of its model, as settings of a stage.

    Args:
        checkpoint: Checkpoint that runs in this process.
        endpoint: Address of the endpoint, up to /v1.
        model: Name of the model at the endpoint.
        spelling: Name of a setting in the error, with {} in place of "checkpoint", "endpoint" and "model".

    Raises:
        ValueError: Both or neither are set, the model's name is missing, or the address is no HTTP address.
    """
    names = [spelling.format(name) for name in ("checkpoint", "endpoint", "model")]
    if (checkpoint is None) == (not endpoint):
        raise ValueError(f"exactly one of {names[0]} and {names[1]}")
    if bool(endpoint) != bool(model):
        raise ValueError(f"{names[2]} beside {names[1]}, and only there")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"{names[1]} that begins with http:// or https://")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Follow none: the key would go with it."""


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class EndpointCompleter:
    """A model behind an API. `url` is the address before /chat/completions; `wait` sleeps for so many seconds.

    Example:
        >>> model = EndpointCompleter("http://localhost:8000/v1", "own-llama", key="", max_batch=8)
        >>> model.complete([Prompt(conversation)], Sampling())[0].message.content
        'We open at nine.'
    """

    url: str
    model: str
    key: str
    max_batch: int
    wait: Callable[[float], None] = time.sleep

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, tell: Callable[[int], None] = ignore
    ) -> list[Reply]:
        """Answer every prompt.

        Raises:
            ConfigError: The endpoint answers no request as it is asked, such as with a wrong key.
            RequestError: The endpoint does not answer after all retries.
        """
        with ThreadPoolExecutor(self.max_batch) as threads:
            futures = [threads.submit(self._ask, prompt, sampling) for prompt in prompts]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    tell(done)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Reply:
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(self._body(prompt, sampling)).encode(),
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
                    return Reply(failure=f"the endpoint refuses: {problem}")
                delay = _delay(error, delay)
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
            if attempt + 1 < TRIES:
                self.wait(delay)
        hint = "What was answered is kept: the same command goes on"
        raise RequestError(f"{self.url} does not answer ({problem})", expected=f"it within {TRIES} tries", hint=hint)

    def _body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        conversation = prompt.conversation
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_spelled(message) for message in conversation.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": prompt.seed,
        }
        return body | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _spelled(message: Message) -> dict[str, Any]:
    """Spell a message as OpenAI does: arguments are text."""
    row = replace(message, weight=1).to_json()
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
        num_prompt_tokens = int((data.get("usage") or {}).get("prompt_tokens") or 0)
        finish_reason = "length" if choice.get("finish_reason") == "length" else "stop"
        return Reply(message, num_tokens, "", finish_reason, num_prompt_tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, ChatError) as error:
        return Reply(failure=f"the endpoint's answer cannot be read: {error}")


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
