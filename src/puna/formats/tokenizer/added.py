"""Added tokens: texts with ids outside the byte-level BPE, either special or plain text.

A special token marks structure (a header, the end of a turn): encoding never produces the id from text, and decoded
answers omit the token. A text token becomes one id at every occurrence in a text, and is printed. The flags are those
of Hugging Face's `added_tokens`. Source: `AddedToken` in the documentation of the tokenizers library.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models

# With at most this many text tokens, a substring search skips the library for texts without any.
MAX_LOOKED_FOR = 64
# Bound on ids, because tables of all ids are built.
MAX_IDS = 2**24
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class AddedToken(NamedTuple):
    """An entry of `added_tokens` in tokenizer.json.

    Attributes:
        single_word: match only where no letter or digit touches the token.
        lstrip: the match includes the space on the left.
        rstrip: the match includes the space on the right.
        normalized: match in the normalized text. Llama 3 has no normalizer.

    Example:
        >>> AddedToken("<order>", 128256, is_special=False).to_json()["special"]
        False
    """

    text: str
    id: int
    is_special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "AddedToken":
        """Read an entry of tokenizer.json; an entry without `special` is special, as Llama 3's are.

        Raises:
            TypeError: A field of another type, or an id that no model has.
            KeyError: An entry without text or id.
        """
        text, index = entry["content"], operator.index(entry["id"])
        if not isinstance(text, str) or not 0 <= index < MAX_IDS:
            raise TypeError(f"added token {text!a:.100} with the id {index}")
        flags = {name: entry.get(name, name == "special") for name in ("special", *_FLAGS)}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TypeError(f"added token {text!a:.100} with {name} = {flag!a:.40}")
        return cls(text, index, flags.pop("special"), **flags)

    @property
    def plain(self) -> "AddedToken":
        """The token without the flag `normalized`, which has no effect without a normalizer."""
        return self._replace(normalized=False)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of tokenizer.json."""
        names = {"text": "content", "is_special": "special"}
        return {names.get(name, name): value for name, value in self._asdict().items()}


def special_tokens(ids: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """Return special tokens from texts and ids, without further flags."""
    return tuple(AddedToken(text, index, is_special=True) for text, index in ids.items())


class TextTokens:
    """Finds text tokens in a text with the rules of the tokenizers library, for arbitrary ids."""

    def __init__(self, tokens: Sequence[AddedToken], normalizer: Any):
        # A vocabulary of a single word: text between two matches becomes one unknown word with offsets.
        self._finder = tokenizers.Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        self._finder.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
        self._finder.add_tokens(list(map(_library_token, tokens)))
        self._ids = {self._finder.token_to_id(token.text): token.id for token in tokens if token.text}
        is_few = len(tokens) <= MAX_LOOKED_FOR
        self._texts = [token.text for token in tokens if token.text] if is_few and not normalizer else None

    def cut(self, text: str) -> Iterator[str | int]:
        """Yield the parts of a text in order: the id of a text token, or text between tokens."""
        if self._texts is not None and not any(token_text in text for token_text in self._texts):
            yield text
            return
        # NOTE: a batch releases Python's lock (GIL), `encode` holds it.
        matches = self._finder.encode_batch([text], add_special_tokens=False)[0]
        for index, (start, end) in zip(matches.ids, matches.offsets, strict=True):
            yield self._ids.get(index, text[start:end])


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    flags = {name: getattr(token, name) for name in _FLAGS}
    return tokenizers.AddedToken(token.text, special=False, **flags)


def require_own_ids(tokens: Iterable[AddedToken], vocab: Mapping[str, int]) -> None:
    """Raise ValueError if two tokens share an id, or if the vocabulary has a different id for a token's text."""
    texts = {index: text for text, index in vocab.items()}
    for token in tokens:
        other = texts.get(token.id, token.text)
        if other != token.text or vocab.get(token.text, token.id) != token.id:
            known = f"{other!a:.100} has this id" if other != token.text else f"the vocabulary says {vocab[token.text]}"
            raise ValueError(f"added token {token.text!a:.100} with the id {token.id}: {known}")
        texts[token.id] = token.text
