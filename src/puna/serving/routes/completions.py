"""POST /v1/completions: prompts as text or token ids -> continuations in OpenAI's legacy layout.

With `echo` or `max_tokens` 0 the response repeats the prompt with log-probabilities. `prompt_logprobs` returns the
prompt's log-probabilities in vLLM's layout, by token id.
"""

import asyncio
import codecs
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response

from puna.inference.engine.outputs import Chunk, TokenLogprob
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.errors import RequestError, TokenizerError
from puna.serving.generation.batch import Batch
from puna.serving.preparation.context_length import require_room
from puna.serving.preparation.grammars import answer_grammar, warn_of_notes
from puna.serving.preparation.sampling import sampling_params
from puna.serving.requests.completion import CompletionRequest
from puna.serving.requests.reading import read_request
from puna.serving.responses.disconnect import respond_unless_disconnected
from puna.serving.responses.event_stream import EventStream
from puna.serving.responses.json_pieces import JsonList, JsonResponse
from puna.serving.responses.logprob_budget import LogprobCount
from puna.serving.responses.tokens import logprob_value, token_text, usage
from puna.serving.served_model import ServedModel

DEFAULT_MAX_TOKENS = 16
PART_LOGPROBS = 4096
LAYOUT = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


async def create_completion(served: ServedModel, request: Request) -> Response:
    """Answer a completion request in OpenAI's legacy format."""
    body = await read_request(request, CompletionRequest, served.read_workers, is_strict=served.strict_fields)
    adapter = served.resolve_adapter(body.model, request.state.tenant)
    # Before the prompt is tokenized: under overload most requests end here.
    await served.engine.expect_room(tenant := request.state.tenant.name, len(body.prompts()) * (body.n or 1))
    num_bytes = len(await request.body())
    prompts = await served.prompt_workers.run(_tokenize, served, body, num_bytes=num_bytes, tenant=tenant)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    is_echo = bool(body.echo) or max_tokens == 0
    echo_logprobs = (is_echo and body.logprobs is not None) or body.prompt_logprobs is not None
    size = LogprobCount([*map(len, prompts)], body.n or 1, max_tokens, body.num_scored, echo_logprobs)
    size.require_fit("logprobs" if body.prompt_logprobs is None else "prompt_logprobs")
    grammar = await answer_grammar(served.grammars, body.response_format, tenant=tenant)
    warn_of_notes(request, grammar)
    pairs: list[tuple[list[int], SamplingParams]] = []
    for prompt in prompts:
        params = sampling_params(
            served,
            body,
            prompt,
            max_tokens=max_tokens,
            logprobs=body.num_scored,
            echo_logprobs=echo_logprobs,
            grammar=grammar,
        )
        pairs += [(prompt, choice) for choice in params]
    batch, reservation = await served.submit(pairs, size.num_logprobs, tenant=tenant, adapter=adapter)
    texts = [_CompletionText(served, body, prompt, is_echo=is_echo) for prompt, _ in pairs]
    answer = _CompletionAnswer(served, body, batch, sum(map(len, prompts)), texts)
    if body.stream:
        return EventStream(answer.events(), batch, reservation)
    return await respond_unless_disconnected(request, batch, answer.whole, reservation)


def _tokenize(served: ServedModel, body: CompletionRequest) -> list[list[int]]:
    """Return the token ids of every prompt."""
    return [_token_ids(served, prompt) for prompt in body.prompts()]


def _token_ids(served: ServedModel, prompt: str | list[int]) -> list[int]:
    """Return the ids of a prompt: begin_of_text starts a text, as in training; token ids are unchanged."""
    if isinstance(prompt, str):
        require_room(served.tokenizer, [prompt], served.max_context, param="prompt")
        return [served.tokenizer.special("begin_of_text"), *served.tokenizer.encode(prompt)]
    try:
        served.tokenizer.decode_bytes(prompt)
    except TokenizerError as error:
        raise RequestError(error.given, expected=error.expected, param="prompt") from None
    return prompt


class _CompletionAnswer:
    """Response to a request: the choices of a batch, in the order of the prompts."""

    def __init__(
        self,
        served: ServedModel,
        body: CompletionRequest,
        batch: Batch,
        num_prompt_tokens: int,
        texts: "list[_CompletionText]",
    ):
        self._body, self._batch, self._texts = body, batch, texts
        self._num_prompt_tokens = num_prompt_tokens
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    async def whole(self) -> JsonResponse:
        choices = [_Choice() for _ in self._texts]
        async for index, chunk in self._batch:
            for number, part in enumerate(self._texts[index].parts(chunk)):
                if number:
                    await asyncio.sleep(0)
                choices[index].add(part)
        payloads = [{"index": index} | choice.payload() for index, choice in enumerate(choices)]
        return JsonResponse(self._head | {"choices": payloads, "usage": self._usage()})

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        no_usage = {"usage": None} if self._body.wants_usage else {}
        async for index, chunk in self._batch:
            for part in self._texts[index].parts(chunk):
                yield self._head | {"choices": [{"index": index} | part]} | no_usage
        if self._body.wants_usage:
            yield self._head | {"choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        return usage(self._num_prompt_tokens, sum(text.num_tokens for text in self._texts))


class _Choice:
    """A choice of a whole response; lists are encoded while growing."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._lists: dict[str, JsonList] = {}
        self._last: dict[str, Any] = {}

    def add(self, part: dict[str, Any]) -> None:
        self._texts.append(part["text"])
        scored = {"prompt_logprobs": part["prompt_logprobs"]} if "prompt_logprobs" in part else {}
        for name, items in ((part["logprobs"] or {}) | scored).items():
            self._lists.setdefault(name, JsonList()).extend(items)
        self._last = part

    def payload(self) -> dict[str, Any]:
        lists = dict(self._lists)
        scored = {name: lists.pop(name) for name in ("prompt_logprobs",) if name in lists}
        return self._last | {"text": "".join(self._texts), "logprobs": lists or None} | scored


class _CompletionText:
    """Reader of a choice's chunks; special tokens are listed as tokens but have no text."""

    def __init__(self, served: ServedModel, body: CompletionRequest, prompt: list[int], *, is_echo: bool):
        self.num_tokens = 0
        self._served, self._num_top = served, body.logprobs
        self._prompt: list[int] | None = prompt if is_echo else []  # None once written
        self._num_prompt_top = body.prompt_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def parts(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Yield the additions of a chunk to the choice; a long prompt is split into parts of a few milliseconds."""
        self.num_tokens += len(chunk.ids)
        layout: dict[str, list[Any]] = {name: [] for name in LAYOUT}
        text = ""
        if self._prompt is not None:
            yield from self._prompt_parts(self._prompt, chunk.prompt_logprobs)
            self._prompt = None
            # NOTE: a prompt may end within a character; generated text starts at a character boundary.
            text = self._decoder.decode(b"", final=True)
            self._num_chars += len(text)
        for entry in chunk.logprobs:
            self._place(entry.id, entry, layout)
        yield self._part(text + chunk.text, layout, (), chunk.finish_reason)

    def _prompt_parts(self, echoed: list[int], entries: Sequence[TokenLogprob | None]) -> Iterator[dict[str, Any]]:
        step = PART_LOGPROBS // max(1, self._num_top or 0, self._num_prompt_top or 0)
        for begin in range(0, max(len(echoed), len(entries)), step):
            ids, known = echoed[begin : begin + step], entries[begin : begin + step]
            layout: dict[str, list[Any]] = {name: [] for name in LAYOUT}
            pairs = zip(ids, known or [None] * len(ids), strict=True) if ids else ()
            text = "".join(self._place(token, entry, layout) for token, entry in pairs)
            yield self._part(text, layout, known, None)

    def _part(
        self,
        text: str,
        layout: dict[str, list[Any]],
        entries: Sequence[TokenLogprob | None],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        logprobs = None if self._num_top is None else layout
        scored = {} if self._num_prompt_top is None else {"prompt_logprobs": self._by_ids(entries)}
        return {"text": text, "logprobs": logprobs, "finish_reason": finish_reason} | scored

    def _by_ids(self, entries: Sequence[TokenLogprob | None]) -> list[dict[str, Any] | None]:
        """Return the prompt's log-probabilities in vLLM's layout: by id, including the prompt's own token."""
        entries_by_id: list[dict[str, Any] | None] = []
        for entry in entries:
            if entry is None:
                entries_by_id.append(None)
                continue
            ranked = {token: (rank, value) for rank, (token, value) in enumerate(entry.top[: self._num_prompt_top], 1)}
            known = {entry.id: ranked.get(entry.id, (None, entry.logprob))} | ranked
            entries_by_id.append(
                {
                    str(token): {
                        "logprob": logprob_value(value),
                        "rank": rank,
                        "decoded_token": self._served.tokenizer.decode([token]),
                    }
                    for token, (rank, value) in known.items()
                }
            )
        return entries_by_id

    def _place(self, token: int, entry: TokenLogprob | None, layout: dict[str, list[Any]]) -> str:
        """Append a token to the layout; return the token's text."""
        tokenizer = self._served.tokenizer
        spelled = partial(token_text, tokenizer)
        most_likely = entry.top[: self._num_top] if entry else ()
        top = {spelled(other): logprob_value(logprob) for other, logprob in most_likely}
        if entry:
            top.setdefault(spelled(token), logprob_value(entry.logprob))
        row = (spelled(token), logprob_value(entry.logprob) if entry else None, top or None, self._num_chars)
        for name, value in zip(LAYOUT, row, strict=True):
            layout[name].append(value)
        is_text = not tokenizer.is_special(token)
        text = self._decoder.decode(tokenizer.decode_bytes([token])) if is_text else ""
        self._num_chars += len(text)
        return text
