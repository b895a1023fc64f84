"""Chunks of one continuation -> what a chat client sees: pieces of text, tool calls, log-probabilities, why it ended.

Holds back text that may turn out to be a tool call until it is known. Where a call begins and ends is for the chat
format to say.
"""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from puna.chat.conversation import ToolCall
from puna.engine.sampler import Chunk, TokenLogprob
from puna.serve.served import Served, logprob_value

FUNCTION_TAG = "<function="


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk adds for the client; the last one has a finish_reason."""

    text: str
    tool_calls: list[dict[str, Any]]
    logprobs: list[dict[str, Any]]
    finish_reason: str | None


class ChatReply:
    """Reads one continuation; `tools` None means that nothing is to be read as a call."""

    def __init__(self, served: Served, tools: list[dict[str, Any]] | None):
        self.num_tokens = 0
        self._served, self._tools = served, tools
        self._python_tag = served.tokenizer.special("python_tag")
        self._ids: list[int] = []
        self._text = ""
        self._num_sent = 0
        self._tag_position: int | None = None
        self._logprobs: list[dict[str, Any]] = []

    def feed(self, chunk: Chunk) -> Piece | None:
        """Take a chunk; None if there is nothing to tell yet."""
        if self._tag_position is None and self._tools is not None and self._python_tag in chunk.ids:
            self._tag_position = len(self._text)
        self._ids += chunk.ids
        self.num_tokens += len(chunk.ids)
        self._text += chunk.text
        # The token that ends the turn is not part of what is said.
        self._logprobs += [self._logprob(e) for e in chunk.logprobs if e.id not in self._served.stop_ids]
        calls = self._read_calls() if chunk.finish_reason else []
        end = self._num_sent if calls else len(self._text) if chunk.finish_reason else self._num_certain()
        text, self._num_sent = self._text[self._num_sent : end], max(end, self._num_sent)
        if not (text or chunk.finish_reason):
            return None
        logprobs, self._logprobs = self._logprobs, []
        return Piece(text, calls, logprobs, "tool_calls" if calls else chunk.finish_reason)

    def _num_certain(self) -> int:
        """Return how many characters are plain text whatever comes next."""
        if self._tag_position is not None:
            return self._tag_position
        if not self._tools:
            return len(self._text)
        if self._text.lstrip()[:1] in ("", "{", "["):
            return 0
        tag = self._text.find(FUNCTION_TAG, self._num_sent)
        if tag >= 0:
            return tag
        begun = (size for size in range(len(FUNCTION_TAG) - 1, 0, -1) if self._text.endswith(FUNCTION_TAG[:size]))
        return len(self._text) - next(begun, 0)

    def _read_calls(self) -> list[dict[str, Any]]:
        # A reply cut off by its length or by a stop string is text: half a call must not be carried out.
        if self._tools is None or not self._ids or self._ids[-1] not in self._served.stop_ids:
            return []
        message = self._served.format.parse(self._ids, self._tools)
        return [_call(call) for call in message.tool_calls]

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.id, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._served.token_text(token),
            "logprob": logprob_value(logprob),
            "bytes": list(self._served.tokenizer.decode_bytes([token])),
        }


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id or f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
