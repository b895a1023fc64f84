"""POST /v1/completions: prompts as text or token ids -> their continuations, in OpenAI's legacy layout.

With `echo` or `max_tokens` 0 the prompt comes back too, with its log-probabilities; `prompt_logprobs` tells them by
ids, as vLLM does. Renders no conversation.
"""

import asyncio
import codecs
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from puna.engine.sampler import Chunk, SamplingParams, TokenLogprob
from puna.errors import RequestError, TokenizerError
from puna.serve.generation.engine_thread import Batch
from puna.serve.grammars import answer_grammar
from puna.serve.refusals import json_response
from puna.serve.requests.completion import CompletionRequest
from puna.serve.requests.reading import read_request
from puna.serve.served import EventStream, Served, answer_unless_gone, logprob_value, usage

DEFAULT_MAX_TOKENS = 16
LAYOUT = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


async def create_completion(served: Served, request: Request) -> Response:
    """Answer a completion request in OpenAI's legacy format."""
    body = await read_request(request, CompletionRequest, is_strict=served.strict_fields)
    adapter = served.adapter_of(body.model, request.state.tenant)
    prompts = await asyncio.to_thread(lambda: [_token_ids(served, prompt) for prompt in body.prompts()])
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    is_echo = bool(body.echo) or max_tokens == 0
    grammar = await answer_grammar(served.grammars, body.response_format)
    pairs: list[tuple[list[int], SamplingParams]] = []
    for prompt in prompts:
        params = served.sampling(
            body,
            prompt,
            max_tokens=max_tokens,
            logprobs=body.num_scored,
            echo_logprobs=(is_echo and body.logprobs is not None) or body.prompt_logprobs is not None,
            grammar=grammar,
        )
        pairs += [(prompt, each) for each in params]
    batch = await served.engine.submit(pairs, tenant=request.state.tenant.name, adapter=adapter)
    texts = [_CompletionText(served, body, prompt, is_echo=is_echo) for prompt, _ in pairs]
    answer = _CompletionAnswer(served, body, batch, sum(map(len, prompts)), texts)
    if body.stream:
        return EventStream(answer.events(), batch)
    return await answer_unless_gone(request, batch, answer.whole)


def _token_ids(served: Served, prompt: str | list[int]) -> list[int]:
    """Return the ids of a prompt: a text gets begin_of_text, as documents do in training; ids stay as they are."""
    if isinstance(prompt, str):
        return [served.tokenizer.special("begin_of_text"), *served.tokenizer.encode(prompt)]
    try:
        served.tokenizer.decode_bytes(prompt)
    except TokenizerError as error:
        raise RequestError(error.given, expected=error.expected, param="prompt") from None
    return prompt


class _CompletionAnswer:
    """What comes back for one request: the choices of one batch, those of the first prompt first."""

    def __init__(
        self,
        served: Served,
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

    async def whole(self) -> Response:
        choices: list[dict[str, Any]] = [{} for _ in self._texts]
        async for index, chunk in self._batch:
            choices[index] = _join(choices[index], self._texts[index].feed(chunk))
        choices = [{"index": index} | choice for index, choice in enumerate(choices)]
        return json_response(self._head | {"choices": choices, "usage": self._usage()})

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        no_usage = {"usage": None} if self._body.wants_usage else {}
        async for index, chunk in self._batch:
            choice = {"index": index} | self._texts[index].feed(chunk)
            yield self._head | {"choices": [choice]} | no_usage
        if self._body.wants_usage:
            yield self._head | {"choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        return usage(self._num_prompt_tokens, sum(text.num_tokens for text in self._texts))


class _CompletionText:
    """One choice as it comes in; special tokens are among the tokens, but have no text."""

    def __init__(self, served: Served, body: CompletionRequest, prompt: list[int], *, is_echo: bool):
        self.num_tokens = 0
        self._served, self._num_top, self._echoed = served, body.logprobs, prompt if is_echo else None
        self._num_prompt_top = body.prompt_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def feed(self, chunk: Chunk) -> dict[str, Any]:
        """Return the chunk as a choice without its index; the first one begins with the echoed prompt."""
        self.num_tokens += len(chunk.ids)
        layout: dict[str, list[Any]] = {name: [] for name in LAYOUT}
        text = self._echo(chunk.prompt_logprobs, layout) + chunk.text
        for entry in chunk.logprobs:
            self._place(entry.id, entry, layout)
        logprobs = None if self._num_top is None else layout
        scored = {} if self._num_prompt_top is None else {"prompt_logprobs": self._by_ids(chunk.prompt_logprobs)}
        return {"text": text, "logprobs": logprobs, "finish_reason": chunk.finish_reason} | scored

    def _by_ids(self, entries: Sequence[TokenLogprob | None]) -> list[dict[str, Any] | None]:
        """Spell the prompt's log-probabilities as vLLM does: by id, the token itself always among them."""
        told: list[dict[str, Any] | None] = []
        for entry in entries:
            if entry is None:
                told.append(None)
                continue
            ranked = {token: (rank, value) for rank, (token, value) in enumerate(entry.top[: self._num_prompt_top], 1)}
            known = {entry.id: ranked.get(entry.id, (None, entry.logprob))} | ranked
            told.append(
                {
                    str(token): {
                        "logprob": logprob_value(value),
                        "rank": rank,
                        "decoded_token": self._served.tokenizer.decode([token]),
                    }
                    for token, (rank, value) in known.items()
                }
            )
        return told

    def _echo(self, entries: Sequence[TokenLogprob | None], layout: dict[str, list[Any]]) -> str:
        echoed, self._echoed = self._echoed or [], None
        entries = entries if echoed else ()
        text = "".join(
            self._place(token, entry, layout)
            for token, entry in zip(echoed, entries or [None] * len(echoed), strict=True)
        )
        # The prompt may end within a character; what is generated starts afresh.
        rest = self._decoder.decode(b"", final=True)
        self._num_chars += len(rest)
        return text + rest

    def _place(self, token: int, entry: TokenLogprob | None, layout: dict[str, list[Any]]) -> str:
        """Enter a token into the layout and return its text."""
        spelled, tokenizer = self._served.token_text, self._served.tokenizer
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


def _join(choice: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Append what a chunk added to a choice."""
    if not choice:
        return more
    layout = more["logprobs"] and {name: choice["logprobs"][name] + more["logprobs"][name] for name in LAYOUT}
    scored = {name: choice[name] + more[name] for name in ("prompt_logprobs",) if name in choice}
    return more | {"text": choice["text"] + more["text"], "logprobs": layout} | scored
