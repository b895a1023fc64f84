"""Chunks of a continuation -> pieces for a chat client: text, tool calls, log-probabilities, finish reason.

The chat format parses calls (formats/chat/stream.py), the engine finds stop strings. Text is sent as soon as neither
can claim the text.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from puna.formats.chat.conversation import ToolCall
from puna.formats.chat.stream import MessageStream, Part
from puna.inference.engine.outputs import Chunk, TokenLogprob
from puna.serving.responses.tokens import logprob_value, token_text
from puna.serving.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Piece:
    """Addition of a chunk to a reply; the last piece has a finish_reason. Example: see `ChatReply`."""

    text: str
    tool_calls: list[dict[str, Any]]
    logprobs: list[dict[str, Any]]
    finish_reason: str | None


class ChatReply:
    """Reader of a continuation's chunks.

    Example:
        >>> reply = ChatReply(served, tools=None)
        >>> reply.feed(Chunk(ids=(72,), text="H", finish_reason="length")).text
        'H'

    Args:
        served: Model with chat format and tokenizer.
        tools: Tools for calls; None treats all output as text.
        begun: Text of a continued message; only the rest of the message is sent.
        begun_ids: Tokens of `begun`.
        stop_ids: Token ids that end the continuation, without text.
    """

    def __init__(
        self,
        served: ServedModel,
        tools: list[dict[str, Any]] | None,
        *,
        begun: str = "",
        begun_ids: Sequence[int] = (),
        stop_ids: Sequence[int] = (),
    ):
        self.num_tokens = 0
        self._served, self._stop_ids = served, stop_ids or served.stop_ids
        self._stream = None if tools is None else MessageStream(served.format, tools)
        self._text = begun  # the whole text without the stop string
        parts = [begun] if self._stream is None else self._stream.feed(begun_ids)
        self._content = "".join(part for part in parts if isinstance(part, str))  # text that cannot become a call
        self._num_sent = len(begun)
        self._last_id: int | None = None
        self._logprobs: list[dict[str, Any]] = []

    def feed(self, chunk: Chunk) -> Piece | None:
        """Read a chunk; return the next piece, or None while the text may still become a call."""
        self.num_tokens += len(chunk.ids)
        self._last_id = chunk.ids[-1] if chunk.ids else self._last_id
        self._text += chunk.text
        # The end-of-turn token is no part of the reply.
        self._logprobs += [self._logprob(e) for e in chunk.logprobs if e.id not in self._stop_ids]
        calls = self._read(chunk)
        text = self._take_text(has_calls=bool(calls), is_over=chunk.finish_reason is not None)
        if not (text or chunk.finish_reason):
            return None
        logprobs, self._logprobs = self._logprobs, []
        return Piece(text, calls, logprobs, "tool_calls" if calls else chunk.finish_reason)

    def _read(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Parse a chunk; return the calls once the turn has ended."""
        # Drop the request's stop tokens; the chat format handles the model's.
        ids = [token for token in chunk.ids if token not in self._stop_ids or token in self._served.stop_ids]
        parts: list[Part] = [chunk.text] if self._stream is None else self._stream.feed(ids)
        # NOTE: a reply cut off by length or stop string stays text: clients must not execute half a call.
        has_ended = chunk.finish_reason is not None and self._last_id in self._served.stop_ids
        if self._stream is not None and has_ended:
            parts += self._stream.finish()
        self._content += "".join(part for part in parts if isinstance(part, str))
        return [_call(part) for part in parts if isinstance(part, ToolCall)] if has_ended else []

    def _take_text(self, *, has_calls: bool, is_over: bool) -> str:
        source = self._content if has_calls else self._text
        end = len(source) if is_over else max(self._num_sent, min(len(self._content), len(self._text)))
        text, self._num_sent = source[self._num_sent : end], end
        return text

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.id, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(self._served.tokenizer, token),
            "logprob": logprob_value(logprob),
            "bytes": list(self._served.tokenizer.decode_bytes([token])),
        }


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id or f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
