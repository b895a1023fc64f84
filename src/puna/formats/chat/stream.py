"""Streamed token ids of an assistant message -> text as soon as no call can start in it, and tool calls at the end.

The joined output equals `ChatFormat.parse` of all ids, regardless of the chunks. If one call of a message is malformed,
the whole message is text; calls are therefore emitted at the end of the message. The engine handles stop
strings (inference/engine/detokenizer.py).
"""

import codecs
import re
from collections.abc import Iterable
from typing import Any

from puna.formats.chat.conversation import Message, ToolCall, tool_name
from puna.formats.chat.format import ChatFormat
from puna.formats.chat.parse import TAG_OPENING

# A prefix of a JSON call, possibly incomplete: {" or [{".
_JSON_OPENING = re.compile(r'\s*(?:\Z|\[\s*(?:\Z|\{\s*(?:\Z|"))|\{\s*(?:\Z|"))')
_BEGUN = "|".join(TAG_OPENING[:size] for size in range(len(TAG_OPENING) - 1, 0, -1))
_TAG_OPENING = re.compile(rf"{TAG_OPENING}(?:[^<>{{}}\s]*\Z|([^<>{{}}\s]+)>)|(?:{_BEGUN})\Z")

Part = str | ToolCall


class MessageStream:
    """An incremental parser: call `feed` with ids, then `finish`; both return the text and calls decided so far.

    Trailing whitespace is held back: before a call, whitespace is not part of the text.

    Example:
        stream = MessageStream(chat, tools)
        parts = [*stream.feed(ids), *stream.finish()]
    """

    def __init__(self, chat: ChatFormat, tools: Iterable[dict[str, Any]] = ()):
        self._chat, self._tools = chat, list(tools)
        self._callable = {tool_name(tool) for tool in self._tools}  # Tools callable without python_tag.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._held = ""
        self._num_told = 0
        self._is_waiting = False  # The rest is decided at the end of the message.
        self._is_over = False

    def feed(self, ids: Iterable[int]) -> list[Part]:
        """Take the next ids. An end token finishes the message; later ids are ignored."""
        fresh = ""
        for token_id in ids:
            if self._is_over:
                break
            if token_id in self._chat.stop_ids:
                return self.finish()
            self._ids.append(token_id)
            if not self._is_waiting:
                fresh += self._decode(token_id)
        return self._tell(fresh)

    def finish(self, *, is_ended: bool = True) -> list[Part]:
        """Return the held-back text and the calls.

        Args:
            is_ended: Whether the message has an end token. A truncated message is text, since a truncated call must not
                run.
        """
        if self._is_over:
            return []
        self._is_over = True
        message = self._chat.parse(self._ids, self._tools) if is_ended else Message("assistant", self._text())
        rest = message.content[self._num_told :]
        return [*([rest] if rest else []), *message.tool_calls]

    def _text(self) -> str:
        tokenizer = self._chat.tokenizer
        return tokenizer.decode([token_id for token_id in self._ids if not tokenizer.is_special(token_id)])

    def _decode(self, token_id: int) -> str:
        if token_id == self._chat.python_tag:
            self._is_waiting = True
        if self._chat.tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._chat.tokenizer.decode_bytes([token_id]))

    def _tell(self, fresh: str) -> list[Part]:
        self._held += fresh
        if not fresh.strip():
            return []
        certain = self._held[: self._num_certain()].rstrip()
        self._held = self._held[len(certain) :]
        self._num_told += len(certain)
        return [certain] if certain else []

    def _num_certain(self) -> int:
        """Return the length of the held text that remains text for any continuation, without trailing whitespace."""
        if not self._callable:
            return len(self._held)
        if not self._num_told and _JSON_OPENING.match(self._held):
            self._is_waiting |= '"' in self._held
            return 0
        tag = _TAG_OPENING.search(self._held)
        if tag is None:
            return len(self._held)
        if tag[1] and tag[1] not in self._callable:
            # A tag with an unknown tool makes the whole message text.
            self._callable = set()
            return len(self._held)
        self._is_waiting |= tag[1] is not None
        return tag.start()
