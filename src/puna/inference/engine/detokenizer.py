"""Incremental detokenization: a stream of token ids -> final text, in whole characters and without stop strings.

Special tokens give no text. Stop ids are the request's concern.
"""

import codecs
from collections.abc import Sequence

from puna.formats.tokenizer import Tokenizer


class TextStream:
    """The text of an answer; `feed` until `is_stopped`, then call `finish` for the rest.

    Example:
        >>> stream = TextStream(tokenizer, stop_strings=["!"])
        >>> "".join(stream.feed(token) for token in tokenizer.encode("Go! Now")) + stream.finish()
        'Go'
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()):
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, token_id: int) -> str:
        """Append a token; return newly final text."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._release(self._decoder.decode(self._tokenizer.decode_bytes([token_id])))

    def finish(self) -> str:
        """Return the remaining text; an incomplete character becomes U+FFFD."""
        certain = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return certain + rest

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        self._held += text
        ends = [(at + len(stop), at) for stop in self._stop_strings if (at := self._held.find(stop)) >= 0]
        if ends:
            # The stop string that ends first wins, so that token boundaries make no difference.
            certain, self._held, self.is_stopped = self._held[: min(ends)[1]], "", True
            return certain
        cut = len(self._held) - max((_overlap(self._held, stop) for stop in self._stop_strings), default=0)
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest overlap: a suffix of `text` and proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
