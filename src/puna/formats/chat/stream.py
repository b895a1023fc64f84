"""Token ids as they come -> text that is certain to stay text, and tool calls once they are certain.

What comes out, joined, equals `ChatFormat.parse` of all the ids, however they are cut. The calls of a turn stand or
fall together (if one is broken, all is text), so they come when the turn ends. Knows no stop strings (engine/text.py).
"""

import codecs
import re
from collections.abc import Iterable
from typing import Any

from puna.formats.chat.conversation import Message, ToolCall, tool_name
from puna.formats.chat.format import ChatFormat
from puna.formats.chat.parse import TAG_OPENING

# What a call in JSON begins with, as far as the text goes: {" or [{".
_JSON_OPENING = re.compile(r'\s*(?:\Z|\[\s*(?:\Z|\{\s*(?:\Z|"))|\{\s*(?:\Z|"))')
_BEGUN = "|".join(TAG_OPENING[:size] for size in range(len(TAG_OPENING) - 1, 0, -1))
_TAG_OPENING = re.compile(rf"{TAG_OPENING}(?:[^<>{{}}\s]*\Z|([^<>{{}}\s]+)>)|(?:{_BEGUN})\Z")

Part = str | ToolCall


class MessageStream:
    """`feed` the ids of an assistant message, then `finish`; both return the parts that became certain.

    Space at the end of a text beside calls is no part of it, so space is held back until something follows.
    """

    def __init__(self, chat: ChatFormat, tools: Iterable[dict[str, Any]] = ()):
        self._chat, self._tools = chat, list(tools)
        self._callable = {tool_name(tool) for tool in self._tools}  # What can be called without python_tag.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._held = ""
        self._num_told = 0
        self._is_waiting = False  # Only the end can tell what the rest is.
        self._is_over = False

    def feed(self, ids: Iterable[int]) -> list[Part]:
        """Take the next ids. An end token finishes the message; ids after it are no part of it."""
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
        """Return what was held back, as what it turned out to be; text if the message was cut off before its end.

        Half a call must not be carried out, and where a call ends only the end of the message says.
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
        """Return how much of what is held is plain text whatever comes next, up to space at its end."""
        if not self._callable:
            return len(self._held)
        if not self._num_told and _JSON_OPENING.match(self._held):
            self._is_waiting |= '"' in self._held
            return 0
        tag = _TAG_OPENING.search(self._held)
        if tag is None:
            return len(self._held)
        if tag[1] and tag[1] not in self._callable:
            # A tag that names none of the tools makes all of the message text.
            self._callable = set()
            return len(self._held)
        self._is_waiting |= tag[1] is not None
        return tag.start()
