"""Text -> token ids and back, byte for byte, with the ids of Meta's reference tokenizer.

Text never becomes a special token; chat/format.py inserts special tokens by id. Non-special added tokens are text.
`encode` adds no begin_of_text.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from puna.formats.tokenizer.added import AddedToken, TextTokens
from puna.formats.tokenizer.files import TokenizerParts, read_tokenizer, token_bytes, write_tokenizer
from puna.pipeline.errors import TokenizerError

# Limits of the reference tokenizer: length of a slice, and of a run of whitespace or of non-whitespace.
MAX_SLICE = 400_000
MAX_RUN = 25_000
LONG_PIECE = 4096
# Both alternatives match only at the start of a run, so that the search is linear.
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{MAX_RUN + 1},}}|(?<!\s)\s{{{MAX_RUN + 1},}}")


class Tokenizer:
    """A byte-level BPE with added tokens.

    Example:
        tokenizer = Tokenizer.load("models/base")
        tokenizer.decode(tokenizer.encode("Open from nine."))
    """

    def __init__(self, encoder: tokenizers.Tokenizer, added: Iterable[AddedToken]):
        """Take an encoder without added tokens, and the added tokens."""
        self._encoder = encoder
        self.added = tuple(added)
        self._specials = {token.text: token.id for token in self.added if token.is_special}
        names = {text.removeprefix("<|").removesuffix("|>"): index for text, index in self._specials.items()}
        self.special_ids: Mapping[str, int] = MappingProxyType(names)
        self._special_set = frozenset(self._specials.values())
        self.text_tokens = tuple(token for token in self.added if not token.is_special)
        self._finder = TextTokens(self.text_tokens, encoder.normalizer) if self.text_tokens else None
        self.num_regular = self._count_regular()

    def _count_regular(self) -> int:
        """Count the vocabulary, without text tokens that some programs append to the vocabulary."""
        if not self.text_tokens:
            return self._encoder.get_vocab_size()
        ids = self._encoder.get_vocab().values()
        last = max(set(ids) - {token.id for token in self.text_tokens}, default=-1)
        return sum(index <= last for index in ids)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Load tokenizer.json or Meta's tokenizer.model from a file or a directory."""
        return cls(*read_tokenizer(Path(path)))

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json into an existing directory."""
        write_tokenizer(TokenizerParts(self._encoder, self.added), Path(directory))

    def to_json(self) -> dict[str, Any]:
        """Return the contents of tokenizer.json without added tokens: split pattern, vocabulary, merges."""
        return json.loads(self._encoder.to_str())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; a lone surrogate, which is not a character, becomes U+FFFD."""
        try:
            return self._encode(text)
        except (UnicodeEncodeError, TypeError):
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._finder.cut(text) if self._finder else (text,):
            if isinstance(part, int):
                ids.append(part)
                continue
            for piece in split_text(part):
                ids.extend(self._ids_of(piece))
        return ids

    def _ids_of(self, piece: str) -> list[int]:
        if len(piece) < LONG_PIECE:
            return self._encoder.encode(piece, add_special_tokens=False).ids
        # NOTE: `encode` holds Python's lock (GIL), a batch releases it for other threads.
        return self._encoder.encode_batch_fast([piece], add_special_tokens=False)[0].ids

    def least_tokens(self, num_bytes: int) -> int:
        """Return a lower bound on the number of tokens of a text, or 0 if no bound is known.

        Example:
            >>> train_tokenizer(["ab ab ab"], vocab_size=514).least_tokens(1000)
            500
        """
        takes_spaces = any(token.lstrip or token.rstrip for token in self.text_tokens)
        return 0 if self._encoder.normalizer or takes_spaces else -(-num_bytes // self._longest)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._bytes_of.values()))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids; special tokens become their text."""
        table = self._bytes_of
        try:
            return b"".join([table[index] for index in ids])
        except KeyError as error:
            raise TokenizerError(
                f"token id {error.args[0]}",
                expected=f"an id of this tokenizer, below {self.vocab_size:,}",
                hint="Use the tokenizer that belongs to the model",
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; invalid UTF-8 becomes U+FFFD, special tokens become their text."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        regular = {index: token_bytes(token) for token, index in self._encoder.get_vocab().items()}
        return regular | {token.id: token.text.encode() for token in self.added}

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus 1, added tokens included."""
        return max(self._bytes_of) + 1

    @cached_property
    def unused_ids(self) -> tuple[int, ...]:
        """The ids below `vocab_size` without a token."""
        return tuple(sorted(set(range(self.vocab_size)) - self._bytes_of.keys()))

    def special(self, name: str) -> int:
        """Return the id of a special token by the name without brackets: "eot_id"."""
        if name not in self.special_ids:
            raise TokenizerError(
                f"no special token {name!r}",
                expected=f"one of {len(self.special_ids)}: {', '.join(list(self.special_ids)[:12])} ...",
                hint="Chat needs a tokenizer of the Llama 3 family",
            )
        return self.special_ids[name]

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_set

    @cached_property
    def fingerprint(self) -> str:
        """A hash, equal for tokenizers with equal ids for every text."""
        content = self._encoder.to_str() + repr(sorted(self._specials.items()))
        if self.text_tokens:
            # Without a normalizer the flag `normalized` has no effect.
            texts = self.text_tokens if self._encoder.normalizer else [token.plain for token in self.text_tokens]
            content += repr(sorted(map(tuple, texts)))
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end generation: end_of_text, eom_id, eot_id."""
        return tuple(self.special(name) for name in ("end_of_text", "eom_id", "eot_id"))


def split_text(text: str) -> Iterator[str]:
    """Cut a text at the reference tokenizer's limits, so that very long runs cannot overflow the regex matcher."""
    for start in range(0, len(text), MAX_SLICE):
        part = text[start : start + MAX_SLICE]
        begin = 0
        for run in _LONG_RUN.finditer(part):
            for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                yield part[begin:cut]
                begin = cut
        yield part[begin:]
