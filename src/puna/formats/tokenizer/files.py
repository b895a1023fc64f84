"""tokenizer.json (byte-level BPE) or Meta's tokenizer.model (tiktoken ranks) <-> encoder and added tokens.

The encoder contains no added tokens. SentencePiece files are not supported.
"""

import base64
import binascii
import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from puna.formats.tokenizer.added import AddedToken, require_own_ids, special_tokens
from puna.formats.tokenizer.beside import read_beside, with_beside
from puna.pipeline.errors import TokenizerError

# Llama 3's split pattern. Source: llama3/tokenizer.py in llama-models.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUM_LLAMA3_RANKS = 128_000
OPTIONS = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")  # of a BPE


def _special_texts() -> tuple[str, ...]:
    named = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id"}
    named |= {7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
    free = (f"reserved_special_token_{index}" for index in range(256))
    return tuple(f"<|{named[index] if index in named else next(free)}|>" for index in range(256))


SPECIAL_TEXTS = _special_texts()  # In id order, as in the published Llama 3.1 files.
# Tokens that structure a dialogue: always special, regardless of the file, so that no text can forge a turn.
NAMED_TEXTS = tuple(text for text in SPECIAL_TEXTS if not text.startswith("<|reserved"))


def _byte_characters() -> list[str]:
    """Return GPT-2's printable character for every byte: the byte itself if printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = (chr(0x100 + index) for index in range(256))
    return [chr(byte) if byte in printable else next(shifted) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
_TO_LATIN1 = {ord(character): byte for byte, character in enumerate(BYTE_CHARACTERS)}
_FROM_LATIN1 = dict(enumerate(BYTE_CHARACTERS))


class TokenizerParts(NamedTuple):
    encoder: tokenizers.Tokenizer  # without added tokens
    added: tuple[AddedToken, ...]


def token_bytes(token: str) -> bytes:
    """Return the bytes of a vocabulary entry."""
    return token.translate(_TO_LATIN1).encode("latin-1")


def build_encoder(model: models.BPE, pattern: str = SPLIT_PATTERN) -> tokenizers.Tokenizer:
    encoder = tokenizers.Tokenizer(model)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return encoder


def read_tokenizer(path: Path) -> TokenizerParts:
    """Read a tokenizer file, or the file in a directory (tokenizer.json before tokenizer.model)."""
    if path.is_dir():
        candidates = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not candidates:
            raise TokenizerError(f"no tokenizer in {path}", expected="tokenizer.json or tokenizer.model")
        path = candidates[0]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path} ({error.strerror})", expected="a tokenizer file or its directory"
        ) from error
    with _paused_collection():
        return _read_json(content, path) if path.suffix == ".json" else _read_ranks(content, path)


@contextlib.contextmanager
def _paused_collection() -> Iterator[None]:
    """Pause garbage collection, which doubles the load time of a tokenizer with half a million objects."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_ranks(content: bytes, path: Path) -> TokenizerParts:
    expected = "lines of a base64 token, a space and its rank (Meta's tokenizer.model for Llama 3)"
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            hint = "A SentencePiece file (Llama 2) cannot be read; use a Llama 3 tokenizer"
            raise TokenizerError(f"{path}, line {number}", expected=expected, hint=hint) from error
    # NOTE: the file does not name the split pattern; a different count means another family, or a truncated file.
    if sorted(ranks.values()) != list(range(NUM_LLAMA3_RANKS)):
        raise TokenizerError(
            f"{path} has {len(ranks):,} distinct tokens",
            expected=f"the {NUM_LLAMA3_RANKS:,} of Llama 3, ranked from 0 without gaps",
            hint="Copy the file again if it was cut short; for another family give its tokenizer.json",
        )
    encoder = build_encoder(_bpe_from_ranks(ranks))
    ids = {text: len(ranks) + index for index, text in enumerate(SPECIAL_TEXTS)}
    return TokenizerParts(encoder, special_tokens(ids))


def _bpe_from_ranks(ranks: dict[bytes, int]) -> models.BPE:
    # tiktoken merges the adjacent pair of the lowest rank. All splits of all tokens in the order of ranks, as BPE
    # merges, give the same merges.
    names = {token: token.decode("latin-1").translate(_FROM_LATIN1) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            left, right = names.get(token[:cut]), names.get(token[cut:])
            if left is not None and right is not None:
                merges.append((left, right))
    vocab = {names[token]: rank for token, rank in ranks.items()}
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=True)


def _read_json(content: bytes, path: Path) -> TokenizerParts:
    try:
        data = json.loads(content)
        model, entries = data["model"], data["added_tokens"]
        if not isinstance(entries, list):
            raise TypeError(f"added_tokens is {type(entries).__name__}")
        added = {token.text: token for token in map(AddedToken.parse, entries)}
        kind, vocab = model.get("type"), model["vocab"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not a complete tokenizer.json ({type(error).__name__}: {error})",
            expected="a JSON object with `model` and `added_tokens`",
            hint="Copy the file again if it was cut short",
        ) from error
    missing = [character for character in BYTE_CHARACTERS if character not in vocab]
    affixes = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if kind == "BPE" and affixes:  # NOTE: the library panics on some affixes; a panic cannot be caught.
        raise TokenizerError(f"{path} has a {affixes[0]}", expected="a byte-level BPE, as Llama 3 has")
    if kind != "BPE" or missing:
        raise TokenizerError(
            f"{path} holds a {kind} model" + (f" without {len(missing)} of the 256 bytes" if missing else ""),
            expected="a byte-level BPE, as Llama 3 has",
        )
    added = with_beside(added, read_beside(path.parent))
    added |= {text: added[text]._replace(is_special=True) for text in NAMED_TEXTS if text in added}
    # NOTE: special tokens inside the encoder would be produced from users' text, and truncation would cut texts
    # silently.
    data |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    specials = {token.text for token in added.values() if token.is_special}
    try:
        require_own_ids(added.values(), vocab)
        model["vocab"] = {token: index for token, index in vocab.items() if token not in specials}
        return TokenizerParts(_parse(data), tuple(added.values()))
    except Exception as error:  # The library raises bare exceptions.
        raise TokenizerError(f"{path} cannot be used ({error})", expected="a byte-level BPE") from error


def _parse(data: dict[str, Any]) -> tokenizers.Tokenizer:
    """Build the encoder: the library parses the small settings, vocabulary and merges are passed as Python objects.

    Parsing the two tables as JSON in the library takes twice as long.
    """
    vocab, merges = data["model"]["vocab"], data["model"].get("merges")
    if not isinstance(merges, list) or not all(isinstance(pair, list) for pair in merges):
        return tokenizers.Tokenizer.from_str(json.dumps(data))  # Older files store merges as strings.
    encoder = tokenizers.Tokenizer.from_str(json.dumps(data | {"model": data["model"] | {"vocab": {}, "merges": []}}))
    options = {name: getattr(encoder.model, name) for name in OPTIONS}
    chosen = {name: value for name, value in options.items() if value is not None}
    encoder.model = models.BPE(vocab=vocab, merges=[tuple(pair) for pair in merges], **chosen)
    return encoder


def write_tokenizer(parts: TokenizerParts, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for transformers' AutoTokenizer."""
    data: dict[str, Any] = json.loads(parts.encoder.to_str())
    by_id, vocab = sorted(parts.added, key=lambda token: token.id), data["model"]["vocab"]
    ids = {token.text: token.id for token in by_id}
    behind = [index for text, index in ids.items() if text not in vocab]
    if behind != list(range(len(vocab), len(vocab) + len(behind))):
        vocab.update(ids)  # Readers assign ids after the vocabulary to added tokens that are not in the vocabulary.
    data["added_tokens"] = [token.to_json() for token in by_id]
    first = "<|begin_of_text|>"
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    roles = {"bos_token": first, "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    config |= {role: text for role, text in roles.items() if text in ids}
    if first in ids:
        data["post_processor"] = _begin_processor(first, ids[first])
    (directory / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _begin_processor(text: str, token_id: int) -> dict[str, Any]:
    """Return the post-processor of the published files, which makes other programs prepend begin_of_text."""
    special = {"SpecialToken": {"id": text, "type_id": 0}}
    parts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [special, parts[0]],
        "pair": [special, parts[0], special, parts[1]],
        "special_tokens": {text: {"id": text, "ids": [token_id], "tokens": [text]}},
    }
