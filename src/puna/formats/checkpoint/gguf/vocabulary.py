"""The tokenizer.ggml.* keys of a GGUF file <-> Tokenizer.

Supports byte-level BPE with Llama 3's split pattern.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import models

from puna.formats.checkpoint.fields import Fields
from puna.formats.checkpoint.gguf.container import GgufFile, Strings
from puna.formats.tokenizer.added import AddedToken
from puna.formats.tokenizer.files import BYTE_CHARACTERS, NAMED_TEXTS, SPLIT_PATTERN, build_encoder
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.errors import CheckpointError

# llama.cpp's names of Llama 3's split. With WHOLE_WORDS a word that is a token is not split, as in Meta's tokenizer;
# with MERGED_WORDS every word is built by merges.
WHOLE_WORDS, MERGED_WORDS = ("llama-bpe", "llama3", "llama-v3"), "smaug-bpe"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# BPE options without a GGUF key.
UNSUPPORTED = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
# Flags of added tokens without a GGUF key.
FLAGS = ("single_word", "lstrip", "rstrip")
STOP_ROLES = ("eos", "eot", "eom")
IDS = {"bos": "begin_of_text", "eos": "eot_id", "eot": "eot_id", "eom": "eom_id", "padding": "finetune_right_pad_id"}


def parse_tokenizer(file: GgufFile, vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer of a file with a token for each of `vocab_size` ids; None for a file without a tokenizer."""
    fields = Fields(file.metadata, file.path, "tokenizer.ggml.")
    if fields.is_one_of("model", ("none", None)):
        return None
    split = fields.get("pre")
    if not fields.is_one_of("model", ("gpt2",)) or not fields.is_one_of("pre", (*WHOLE_WORDS, MERGED_WORDS)):
        raise CheckpointError(
            f"{file.path}: a tokenizer of model {fields.get('model')!a:.50} with split {split!a:.50}",
            expected=f'model "gpt2" with split {WHOLE_WORDS[0]}: a byte-level BPE as Llama 3 has',
        )
    vocab, added = _read_tokens(file, vocab_size)
    merges = list(_read_merges(file, vocab))
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=split in WHOLE_WORDS)
    except Exception as error:  # The library raises bare exceptions.
        raise CheckpointError(f"{file.path}: its tokenizer ({error})", expected="a byte-level BPE") from error
    return Tokenizer(build_encoder(bpe), added)


def parse_stop_ids(file: GgufFile, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the stop ids among the keys."""
    fields = Fields(file.metadata, file.path, "tokenizer.ggml.")
    ids: list[int] = []
    for role in STOP_ROLES:
        value = fields.get(key := f"{role}_token_id")
        if value is not None and (type(value) is not int or not 0 <= value < tokenizer.vocab_size):
            raise fields.fail(key, f"an id below {tokenizer.vocab_size}")
        ids += [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def _read_tokens(file: GgufFile, vocab_size: int) -> tuple[dict[str, int], tuple[AddedToken, ...]]:
    """Return the ids of plain tokens, and added tokens: control tokens are special, user-defined tokens are text."""
    tokens, kinds = _strings(file, "tokens"), file.metadata.get("tokenizer.ggml.token_type")
    if len(tokens) != vocab_size or not isinstance(kinds, np.ndarray) or len(kinds) != vocab_size:
        raise CheckpointError(
            f"{file.path}: {len(tokens):,} tokens for {vocab_size:,} embeddings",
            expected="a token and an entry of tokenizer.ggml.token_type per embedding",
        )
    ids_by_type: dict[int, dict[str, int]] = {NORMAL: {}, CONTROL: {}, USER_DEFINED: {}, UNUSED: {}}
    for index, (token, kind) in enumerate(zip(tokens, kinds.tolist(), strict=True)):
        if kind not in ids_by_type or token in ids_by_type[kind]:
            given = f"token {index}, {token!a:.100}, " + (
                "is a duplicate" if kind in ids_by_type else f"is of type {kind}"
            )
            raise CheckpointError(f"{file.path}: {given}", expected="distinct tokens of type 1, 3, 4 or 5")
        ids_by_type[kind][token] = index
    vocab = ids_by_type[NORMAL] | _of_vocabulary(ids_by_type[USER_DEFINED], _strings(file, "merges"))
    missing = [character for character in BYTE_CHARACTERS if character not in vocab]
    if missing or ids_by_type[CONTROL].keys() & ids_by_type[USER_DEFINED].keys():
        given = f"lacks {len(missing)} of the 256 bytes" if missing else "has an added token twice"
        raise CheckpointError(f"{file.path}: its tokenizer {given}", expected="a byte-level BPE")
    kinds_of = {CONTROL: True, USER_DEFINED: False}
    added = [
        AddedToken(text, index, is_special)
        for kind, is_special in kinds_of.items()
        for text, index in ids_by_type[kind].items()
    ]
    named = [token._replace(is_special=True) if token.text in NAMED_TEXTS else token for token in added]
    return vocab, tuple(sorted(named, key=lambda token: token.id))


def _of_vocabulary(user_defined: Mapping[str, int], merges: Iterable[str]) -> dict[str, int]:
    """Return user-defined tokens that merges produce: an added token may also be part of the vocabulary."""
    if not user_defined:
        return {}
    made = set(BYTE_CHARACTERS).union(
        *({left, right, left + right} for left, _, right in (merge.partition(" ") for merge in merges))
    )
    return {text: index for text, index in user_defined.items() if text in made}


def _read_merges(file: GgufFile, vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    merges = _strings(file, "merges")
    # A token has fewer splits than characters; the check bounds memory for untrusted files.
    if len(merges) > sum(map(len, vocab)):
        raise CheckpointError(
            f"{file.path}: {len(merges):,} merges", expected=f"at most the possible splits of {len(vocab):,} tokens"
        )
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(
                f"{file.path}: merge {index}, {merge!a:.100}",
                expected="two tokens, separated by a space, whose concatenation is a token",
            )
        yield left, right


def _strings(file: GgufFile, name: str) -> Strings:
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, Strings):
        raise CheckpointError(f"{file.path}: no tokenizer.ggml.{name}", expected="an array of texts")
    return value


def render_tokenizer(tokenizer: Tokenizer, vocab_size: int, other_stop_ids: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the keys of a tokenizer; missing ids below `vocab_size` become unused tokens.

    An additional stop id of the model replaces eos; GGUF has no key for a second one.
    """
    if len(other_stop_ids) > 1:
        raise CheckpointError(
            f"stop ids {list(other_stop_ids)}", expected="at most one stop id in addition to Llama 3's"
        )
    model = _plain_model(tokenizer)
    tokens = {index: (f"[PAD{index}]", UNUSED) for index in range(vocab_size)}
    tokens |= {index: (text, NORMAL) for text, index in model["vocab"].items()}
    tokens |= {token.id: (token.text, CONTROL if token.is_special else USER_DEFINED) for token in tokenizer.added}
    prefix = "tokenizer.ggml."
    rendered = {
        f"{prefix}model": "gpt2",
        f"{prefix}pre": WHOLE_WORDS[0] if model.get("ignore_merges") else MERGED_WORDS,
        f"{prefix}tokens": [text for text, _ in tokens.values()],
        f"{prefix}token_type": [kind for _, kind in tokens.values()],
        f"{prefix}merges": [" ".join(merge) for merge in model["merges"]],
        f"{prefix}add_bos_token": True,
    }
    named = {f"{prefix}{role}_token_id": name for role, name in IDS.items() if name in tokenizer.special_ids}
    rendered |= {key: tokenizer.special(name) for key, name in named.items()}
    return rendered | {f"{prefix}eos_token_id": stop_id for stop_id in other_stop_ids}


def _plain_model(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the BPE of tokenizer.json; CheckpointError if GGUF cannot represent the tokenizer."""
    saved = tokenizer.to_json()
    model = saved["model"]
    wrong = [name for name in UNSUPPORTED if model.get(name)]
    wrong += ["normalizer"] if saved["normalizer"] else []
    wrong += [] if _is_llama3_split(saved["pre_tokenizer"]) else ["pre_tokenizer"]
    wrong += [
        f"{name} for the added token {token.text!a:.100}"
        for token in tokenizer.text_tokens
        for name in FLAGS
        if getattr(token, name)
    ]
    if wrong:
        raise CheckpointError(
            f"a tokenizer with {wrong[0]} of its own", expected="a byte-level BPE with Llama 3's split"
        )
    return model


def _is_llama3_split(step: Any) -> bool:
    steps = step["pretokenizers"] if step and step["type"] == "Sequence" else [step]
    if len(steps) != 2 or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return False
    split, level = steps
    behaviour = (split["pattern"].get("Regex"), split["behavior"], split["invert"])
    is_plain = not level["add_prefix_space"] and not level["use_regex"]
    return behaviour == (SPLIT_PATTERN, "Isolated", False) and is_plain
