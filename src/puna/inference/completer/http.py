"""HTTP client of OpenAI-compatible endpoints: JSON requests with a retry policy.

Overload, server errors and lost connections are retried with exponential back-off, jitter and Retry-After. Redirects
are refused, since a redirect would carry the API key to another host. Keys appear in no log line and no error.
"""

import http.client
import json
import logging
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from puna.inference.completer.settings import EndpointConfig
from puna.pipeline.errors import ConfigError, RequestError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# 501 and 505 are permanent; 529 is the overload of some vendors.
RETRIED_STATUSES = {408, 409, 425, 429, *range(500, 600)} - {501, 505}
REPORTED_ATTEMPTS = (3, 6)
MAX_ANSWER_BYTES = 1 << 29
MAX_ERROR_BYTES = 65_536

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """Attempts of a request, with delays in seconds.

    The delay doubles with every attempt. Jitter spreads the retries of many clients; a longer Retry-After wins.

    Example:
        >>> RetryPolicy().delay(attempt=1, retry_after=7.0)
        7.0
    """

    max_attempts: int = 8
    first_delay: float = 0.5
    max_delay: float = 60.0
    max_retry_after: float = 120.0

    def delay(self, attempt: int, retry_after: float) -> float:
        """Return the delay before retry number `attempt`, counted from 1."""
        backoff = min(self.max_delay, self.first_delay * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        return max(backoff, min(retry_after, self.max_retry_after))


class RejectedError(Exception):
    """A permanent rejection of a request, for example status 400 or 404.

    Example: `EndpointClient.post`.
    """

    def __init__(self, status: int, message: str):
        super().__init__(f"{status} {message}")
        self.status, self.message = status, message


class UnreadableAnswerError(RequestError):
    """The last attempt returned no JSON object."""


@dataclass(frozen=True)
class _Failure:
    """A failed attempt worth a retry."""

    reason: str
    retry_after: float = 0.0
    is_unreadable: bool = False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Refuse every redirect."""
        return


class EndpointClient:
    """JSON over HTTP to an endpoint, safe for use from several threads.

    Example:
        >>> client = EndpointClient(EndpointConfig(url="http://localhost:8000/v1", model="own-llama"), key="")
        >>> client.post("/completions", {"prompt": "Once", "max_tokens": 1})["choices"][0]["finish_reason"]
        'length'
    """

    def __init__(
        self,
        config: EndpointConfig,
        key: str,
        log: Callable[[str], None] = logger.warning,
        *,
        wait: Callable[[float], None] = time.sleep,
    ):
        self.config, self._log, self._policy, self._wait = config, log, RetryPolicy(), wait
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(_NoRedirect)

    @classmethod
    def open(
        cls, config: EndpointConfig, secret: Callable[[str], str], log: Callable[[str], None] = logger.warning
    ) -> "EndpointClient":
        """Open a client with the API key of `key_variable`; `secret` returns the value of an environment variable."""
        return cls(config, secret(config.key_variable) if config.key_variable else "", log)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a body with the model's name added, and return the answer.

        Raises:
            ConfigError: The endpoint refuses the API key.
            RejectedError: The endpoint rejects the request for good.
            UnreadableAnswerError: The last attempt returned no JSON object.
            RequestError: The last attempt failed.
        """
        data = json.dumps({"model": self.config.model, **body}).encode()
        result = self._attempt(path, data)
        for attempt in range(1, self._policy.max_attempts):
            if isinstance(result, dict):
                return result
            if attempt in REPORTED_ATTEMPTS:
                self._log(f"{self.config.url}{path}: {result.reason}; trying again")
            self._wait(self._policy.delay(attempt, result.retry_after))
            result = self._attempt(path, data)
        if isinstance(result, dict):
            return result
        raise (UnreadableAnswerError if result.is_unreadable else RequestError)(
            f"{self.config.url}{path} failed {self._policy.max_attempts} times, at last: {result.reason}",
            expected="a JSON response",
            hint="The same command resumes where it stopped",
        )

    def map(self, ask: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
        """Yield the results of concurrent calls in the order of the items; the first failure cancels the rest."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = [pool.submit(ask, item) for item in items]
            try:
                for future in futures:
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _attempt(self, path: str, data: bytes) -> dict[str, Any] | _Failure:
        request = urllib.request.Request(self.config.url + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=self.config.timeout) as response:
                text = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            return self._read_error(error)
        except (OSError, http.client.HTTPException) as error:
            return _Failure(f"{type(error).__name__}: {error}")
        try:
            answer = json.loads(text) if len(text) <= MAX_ANSWER_BYTES else None
        except (ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else _Failure("no JSON object", is_unreadable=True)

    def _read_error(self, error: urllib.error.HTTPError) -> _Failure:
        message = _message(error)
        if error.code in RETRIED_STATUSES:
            return _Failure(f"{error.code} {message}", _retry_after(error))
        if error.code in (401, 403):
            hint = "Check the endpoint, the model and the key in the environment variable of key_variable"
            given = f"{self.config.url} answers {error.code} {message}"
            raise ConfigError(given, expected="a valid API key", hint=hint) from None
        raise RejectedError(error.code, message) from None


def _message(error: urllib.error.HTTPError) -> str:
    """Return the message of an error body, in OpenAI's layout or a similar layout."""
    try:
        text = error.read(MAX_ERROR_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text[:200] or str(error.reason)
    detail = body.get("error", body) if isinstance(body, dict) else body
    return str(detail.get("message", detail) if isinstance(detail, dict) else detail)[:400]


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Return Retry-After in seconds, from seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    value = error.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
