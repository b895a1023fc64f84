"""POST /v1/chat/completions: a conversation -> the assistant's next message, whole or as a stream.

The chat format turns conversations into tokens, and generated tokens into tool calls.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import Request
from starlette.responses import Response

from puna.formats.chat.conversation import Conversation
from puna.inference.engine.grammar.grammar import Grammar
from puna.serving.errors import HttpError
from puna.serving.generation.batch import Batch
from puna.serving.preparation.context_length import require_room
from puna.serving.preparation.grammars import message_grammar, warn_of_notes
from puna.serving.preparation.sampling import sampling_params
from puna.serving.requests.chat import ChatRequest
from puna.serving.requests.reading import read_request
from puna.serving.responses.disconnect import respond_unless_disconnected
from puna.serving.responses.event_stream import EventStream
from puna.serving.responses.json_pieces import JsonList, JsonResponse
from puna.serving.responses.logprob_budget import LogprobCount, most_tokens
from puna.serving.responses.tokens import usage
from puna.serving.routes.chat_reply import ChatReply, Piece
from puna.serving.served_model import ServedModel


async def create_chat_completion(served: ServedModel, request: Request) -> Response:
    """Answer a chat request in OpenAI's format."""
    body = await read_request(request, ChatRequest, served.read_workers, is_strict=served.strict_fields)
    adapter = served.resolve_adapter(body.model, request.state.tenant)
    # Before tokenization: under overload most requests end here.
    await served.engine.expect_room(tenant := request.state.tenant.name, body.n or 1)
    num_bytes, run = len(await request.body()), served.prompt_workers.run
    conversation, prompt = await run(_read_conversation, served, body, num_bytes, num_bytes=num_bytes, tenant=tenant)
    grammar = await message_grammar(served.grammars, body, conversation, tenant=tenant)
    warn_of_notes(request, grammar)
    begun = conversation.messages[-1].content.strip() if body.is_continuing else ""
    # Every reply parses the continued text again.
    work = (served, body, conversation, grammar, begun)
    grammar, replies = await run(_begin, *work, num_bytes=num_bytes, tenant=tenant) if begun else _begin(*work)
    max_tokens = body.max_tokens or body.max_completion_tokens
    room = served.max_context - len(prompt)
    most = most_tokens(body.n or 1, body.num_top_logprobs)
    if max_tokens is None and most is not None and most < room:
        max_tokens = most
    size = LogprobCount([len(prompt)], body.n or 1, max(0, max_tokens or room), body.num_top_logprobs)
    params = sampling_params(
        served,
        body,
        prompt,
        max_tokens=max_tokens,
        logprobs=body.num_top_logprobs,
        # Without a grammar, banning these tokens is the only way to rule out calls.
        banned_ids=served.format.call_ids if body.tool_choice == "none" and grammar is None else (),
        grammar=grammar,
    )
    size.require_fit("top_logprobs")
    requests = [(prompt, choice) for choice in params]
    batch, reservation = await served.submit(requests, size.num_logprobs, tenant=tenant, adapter=adapter)
    answer = _ChatAnswer(body, batch, len(prompt), replies, echoed=begun if body.echo else "")
    if body.stream:
        return EventStream(answer.events(), batch, reservation)
    return await respond_unless_disconnected(request, batch, answer.whole, reservation)


def _begin(
    served: ServedModel, body: ChatRequest, conversation: Conversation, grammar: Grammar | None, begun: str
) -> tuple[Grammar | None, list[ChatReply]]:
    """Return the grammar after the text of a continued message, and readers for the `n` replies."""
    ids = served.tokenizer.encode(begun)
    tools = None if body.tool_choice == "none" else list(conversation.tools)
    stop_ids = (*served.stop_ids, *(body.stop_token_ids or ()))
    replies = [ChatReply(served, tools, begun=begun, begun_ids=ids, stop_ids=stop_ids) for _ in range(body.n or 1)]
    return grammar.after(ids) if grammar and begun else grammar, replies


def _read_conversation(served: ServedModel, body: ChatRequest, num_bytes: int) -> tuple[Conversation, list[int]]:
    try:
        conversation = Conversation.from_json(body.conversation())
        if num_bytes > served.max_context:  # A token has at least one byte.
            texts = [*_texts(conversation)]
            has_large_tools = bool(conversation.tools) and 2 * len(texts[-1]) > sum(map(len, texts))
            param = "tools" if has_large_tools else "messages"
            require_room(served.tokenizer, texts, served.max_context, param=param)
        prompt = served.format.prompt_to_continue if body.is_continuing else served.format.prompt
        return conversation, prompt(conversation)
    except RecursionError:
        raise HttpError(400, "The arguments of a tool call are nested too deeply.", param="messages") from None


def _texts(conversation: Conversation) -> Iterator[str]:
    """Yield texts of the conversation that appear in the prompt."""
    for message in conversation.messages:
        yield message.content.strip()
        yield from (json.dumps(call.arguments, ensure_ascii=False) for call in message.tool_calls)
    if conversation.tools:
        yield json.dumps(conversation.tools, ensure_ascii=False)


class _ChatAnswer:
    """Response to a request: `n` replies from a batch."""

    def __init__(
        self,
        body: ChatRequest,
        batch: Batch,
        num_prompt_tokens: int,
        replies: list[ChatReply],
        *,
        echoed: str,
    ):
        self._body, self._batch, self._replies, self._echoed = body, batch, replies, echoed
        self._num_prompt_tokens = num_prompt_tokens
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    async def whole(self) -> JsonResponse:
        texts: list[list[str]] = [[] for _ in self._replies]
        entries = [JsonList() for _ in self._replies]
        last: dict[int, Piece] = {}
        async for index, piece in self._pieces():
            texts[index].append(piece.text)
            entries[index].extend(piece.logprobs)
            last[index] = piece
        choices = [self._choice(i, self._echoed + "".join(texts[i]), entries[i], last[i]) for i in range(len(texts))]
        return JsonResponse(self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()})

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        for index in range(len(self._replies)):
            yield self._event(index, {"role": "assistant", "content": self._echoed})
        async for index, piece in self._pieces():
            delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
            if piece.tool_calls:
                delta["tool_calls"] = [{"index": i} | call for i, call in enumerate(piece.tool_calls)]
            if delta or piece.logprobs:
                yield self._event(index, delta, logprobs=self._logprobs(piece.logprobs))
            if piece.finish_reason:
                yield self._event(index, {}, finish_reason=piece.finish_reason)
        if self._body.wants_usage:
            yield self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        async for index, chunk in self._batch:
            if piece := self._replies[index].feed(chunk):
                yield index, piece

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        no_usage = {"usage": None} if self._body.wants_usage else {}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]} | no_usage

    def _choice(self, index: int, text: str, entries: JsonList, last: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not last.tool_calls else None}
        return {
            "index": index,
            "message": message | ({"tool_calls": last.tool_calls} if last.tool_calls else {}),
            "logprobs": self._logprobs(entries),
            "finish_reason": last.finish_reason,
        }

    def _logprobs(self, entries: list[dict[str, Any]] | JsonList) -> dict[str, Any] | None:
        return {"content": entries} if self._body.logprobs else None

    def _usage(self) -> dict[str, int]:
        return usage(self._num_prompt_tokens, sum(reply.num_tokens for reply in self._replies))
