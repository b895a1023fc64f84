"""JSON requests to an OpenAI-compatible server, with retries: what fails for a moment is asked again, ever more slowly.

Knows no labels. Keys never appear in what it logs or raises, and are sent nowhere but to the URL that was given.
"""

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from puna.pipeline.config import StageConfig
from puna.pipeline.errors import ConfigError, RequestError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_TRIES = 8
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
MAX_ANSWER_BYTES = 1 << 29


class EndpointConfig(StageConfig):
    """A server that tells log-probabilities, and how it is asked."""

    url: str = Field(description="up to /v1, such as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="its name at the server")
    tokenizer: Path = Field(description="the model's tokenizer: a file, or a directory that holds one")
    answers: bool = Field(default=False, description="label answers that it writes, not the texts that are given")
    max_tokens: int = Field(default=512, ge=1, description="longest answer")
    answer_temperature: float = Field(default=1.0, ge=0, le=2, description="at which answers are sampled")
    concurrency: int = Field(default=8, ge=1, le=256, description="requests at the same time")
    timeout: float = Field(default=300.0, gt=0, description="seconds until a request is given up and asked again")
    key_variable: str = Field(default="", description="the environment variable that holds the key, if it wants one")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("http://HOST/v1 or https://HOST/v1, without a key in it")
        return url.rstrip("/")


class Refused(Exception):
    """The server will not do this, however often it is asked."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Follow none: the key would go with it."""
        return


class Endpoint:
    """Posts JSON; any thread may."""

    def __init__(self, config: EndpointConfig, key: str, log: Callable[[str], None], *, pause: float = FIRST_DELAY):
        self.config, self._log, self._pause = config, log, pause
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer; Refused for what asking again will not mend, RequestError when it was tried enough."""
        reason, asked = "", 0.0
        for attempt in range(MAX_TRIES):
            if attempt:
                if attempt in (3, 6):
                    self._log(f"{self.config.url}{path}: {reason}; trying again")
                time.sleep(self._delay(attempt, asked))
            reason, asked, answer = self._try(path, {"model": self.config.model, **body})
            if answer is not None:
                return answer
        raise RequestError(
            f"{self.config.url}{path} failed {MAX_TRIES} times, at last: {reason}",
            expected="an answer",
            hint="The same command goes on where it stopped",
        )

    def each(self, ask: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
        """Ask about items side by side and yield what comes, in their order; after a failure nothing more is asked."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = [pool.submit(ask, item) for item in items]
            try:
                for future in futures:
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _try(self, path: str, body: dict[str, Any]) -> tuple[str, float, dict[str, Any] | None]:
        """Ask once; return why there is no answer, how long the server wants to be left alone, and the answer."""
        request = urllib.request.Request(self.config.url + path, json.dumps(body).encode(), self._headers)
        try:
            with self._opener.open(request, timeout=self.config.timeout) as response:
                text = response.read(MAX_ANSWER_BYTES + 1)
            answer = json.loads(text) if len(text) <= MAX_ANSWER_BYTES else None
            return ("", 0.0, answer) if isinstance(answer, dict) else ("an answer that is no JSON object", 0.0, None)
        except urllib.error.HTTPError as error:
            message = f"{error.code} {_message(error)}"
            if error.code in PASSING:
                return message, _retry_after(error), None
            if error.code in (401, 403):
                hint = "Name the environment variable that holds the key in endpoint.key_variable"
                raise ConfigError(f"{self.config.url} refused: {message}", expected="a valid key", hint=hint) from None
            raise Refused(error.code, message) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{type(error).__name__}: {error}", 0.0, None

    def _delay(self, attempt: int, asked: float) -> float:
        """Double from try to try, with some chance, so that many who wait do not come back together."""
        backoff = min(LONGEST_DELAY, self._pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        return min(2 * LONGEST_DELAY, max(backoff, asked))


def _message(error: urllib.error.HTTPError) -> str:
    """Return what the server says went wrong, in OpenAI's layout or another."""
    try:
        text = error.read(65_536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        body = json.loads(text)
    except ValueError:
        return text[:200] or error.reason
    told = body.get("error", body) if isinstance(body, dict) else body
    return str(told.get("message", told) if isinstance(told, dict) else told)[:400]


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
