"""A checkpoint ready to answer: name, tokenizer, chat format, engine, and defaults for requests.

Knows no endpoint's JSON; both endpoints are given one of these.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.grammar.grammar import Grammar
from puna.inference.engine.sampler import SamplingParams
from puna.serving.admission.workers import Workers
from puna.serving.errors import Refusal, as_refusal, encode_json
from puna.serving.generation.batch import Batch
from puna.serving.generation.engine_client import EngineClient
from puna.serving.middleware.keys import Tenant
from puna.serving.preparation.grammars import Grammars
from puna.serving.requests.body import Body
from puna.serving.responses.json_pieces import JsonResponse
from puna.serving.responses.size import AnswerSpace, TakenSpace

LEAST_LOGPROB = -9999.0

logger = logging.getLogger("puna.serving")

Answer = TypeVar("Answer")


class AdapterNames(Protocol):
    """The adapters of a model by name: puna.inference.engine.adapters.Adapters, or a reader of the folder alone."""

    def names(self) -> list[str]: ...

    def find(self, name: str) -> object | None: ...


@dataclass(frozen=True)
class Served:
    """The state that all routes share. `defaults` are sampling parameters for requests that name none.

    `notice` is the text that the model's licences require to be shown. `strict_fields` refuses fields without effect.
    Every adapter of `adapters` is served as a model under the adapter's name.
    """

    name: str
    tokenizer: Tokenizer
    format: ChatFormat
    engine: EngineClient
    max_context: int
    stop_ids: tuple[int, ...]
    defaults: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    notice: str = ""
    strict_fields: bool = False
    adapters: AdapterNames | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def grammars(self) -> Grammars:
        """The compiler of `response_format` and tool schemas."""
        return Grammars(self.tokenizer, self.stop_ids, self.engine.admit)

    @cached_property
    def readers(self) -> Workers:
        """The threads that read bodies."""
        return Workers()

    @cached_property
    def tokenizers(self) -> Workers:
        """The threads that render and tokenize prompts."""
        return Workers()

    @cached_property
    def answer_space(self) -> AnswerSpace:
        """The bound on log-probabilities of all answers together."""
        return AnswerSpace()

    def names(self, tenant: Tenant) -> list[str]:
        """Return the models that a tenant can name: the checkpoint and the adapters, or the models of the key."""
        adapters = self.adapters.names() if self.adapters else []
        names = [self.name, *(name for name in adapters if name != self.name)]
        return [name for name in names if tenant.models is None or name in tenant.models]

    def adapter_of(self, name: str, tenant: Tenant) -> str:
        """Return the adapter that a model's name stands for, "" for the checkpoint itself; Refusal for other names."""
        # Of a model that its key is not for, a tenant does not learn that it is there.
        is_open = tenant.models is None or name in tenant.models
        if is_open and name == self.name:
            return ""
        if is_open and self.adapters and self.adapters.find(name):
            return name
        known = "GET /v1/models lists yours" if self.adapters else f"the one that is served is {self.name!r}"
        raise Refusal(404, f"There is no model {name!a} here; {known}.", param="model", code="model_not_found")

    def sampling(
        self,
        body: Body,
        prompt: list[int],
        *,
        max_tokens: int | None,
        logprobs: int | None,
        echo_logprobs: bool = False,
        banned_ids: tuple[int, ...] = (),
        grammar: Grammar | None = None,
    ) -> list[SamplingParams]:
        """Return the parameters of each of the `n` continuations of a prompt; None for max_tokens is all that fits."""
        room = self.max_context - len(prompt)
        wanted = max(room, 1) if max_tokens is None else max_tokens
        if wanted > room:
            message = f"{len(prompt):,} prompt tokens and {wanted:,} new ones; at most {self.max_context:,} fit."
            raise Refusal(400, message, param="max_tokens", code="context_length_exceeded")
        asked = {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "min_p": body.min_p,
            "repetition_penalty": body.repetition_penalty,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
        }
        first = replace(
            self.defaults,
            **{name: value for name, value in asked.items() if value is not None},
            max_tokens=wanted,
            stop_ids=(*self.stop_ids, *(body.stop_token_ids or ())),
            stop_strings=body.stop_strings,
            logprobs=logprobs,
            echo_logprobs=echo_logprobs,
            logit_bias=body.biases,
            banned_ids=banned_ids,
            grammar=grammar,
        )
        seeds = [None if body.seed is None else _wrap(body.seed + index) for index in range(body.n or 1)]
        return [replace(first, seed=seed) for seed in seeds]

    async def submit(
        self, requests: list[tuple[list[int], SamplingParams]], num_logprobs: int, *, tenant: str, adapter: str
    ) -> tuple[Batch, TakenSpace]:
        """Submit prompts with parameters to the engine; reserve space for the log-probabilities of the answer."""
        space = self.answer_space.take(num_logprobs)
        try:
            return await self.engine.submit(requests, tenant=tenant, adapter=adapter), space
        except BaseException:
            space.close()
            raise

    def token_text(self, token: int) -> str:
        """Return a token as text, and one that is part of a character as OpenAI does: `bytes:\\xe2\\x80`."""
        spelled = self.tokenizer.decode_bytes([token])
        try:
            return spelled.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


class EventStream(StreamingResponse):
    """Server-sent events from payloads; ends with [DONE], after an error event if the batch fails on the way."""

    media_type = "text/event-stream"

    def __init__(self, payloads: AsyncIterator[dict[str, Any]], batch: Batch, space: TakenSpace):
        super().__init__(_events(payloads), headers={"cache-control": "no-cache"})
        self._batch, self._space = batch, space

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["is_event_stream"] = True  # protocol/http.py may send a comment between events
        # Leaving for any reason, a client that hangs up among them, stops the generation.
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._batch.close()
            self._space.close()


async def answer_unless_gone(
    request: Request, batch: Batch, answer: Callable[[], Awaitable[JsonResponse]], space: TakenSpace
) -> Response:
    """Run `answer`, but stop the batch as soon as the client hangs up; the answer keeps its space until it is sent."""
    work = asyncio.ensure_future(answer())
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)
        response = work.result()
        response.space = space
        return response
    finally:
        work.cancel()
        leaving.cancel()
        batch.close()
        if not work.done() or work.cancelled() or work.exception():
            space.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(payloads: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for payload in payloads:
            yield b"data: " + encode_json(payload) + b"\n\n"
    except Exception as error:
        if not isinstance(error, Refusal):
            logger.exception("a stream failed")
        yield b"data: " + encode_json(as_refusal(error).body()) + b"\n\n"
    yield b"data: [DONE]\n\n"


def usage(num_prompt_tokens: int, num_new_tokens: int) -> dict[str, int]:
    """Return the counts that end a response."""
    total = num_prompt_tokens + num_new_tokens
    return {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_new_tokens, "total_tokens": total}


def logprob_value(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB)


def _wrap(seed: int) -> int:
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
