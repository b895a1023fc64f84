"""Checkpoints whose vocabulary grew: tokens added behind it, and rows that belong to no token."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.testing.tiny_checkpoint import CONFIG, WEIGHTS, edit_json, save

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


def entry(text: str, **flags: Any) -> dict[str, Any]:
    """An entry of `added_tokens` as `add_tokens` of transformers makes it, without its id."""
    return {"content": text, **FLAGS, **flags}


def grow(directory: Path, *entries: dict[str, Any]) -> Path:
    """Save the tiny checkpoint with added tokens of the ids 530, 531 and on, and a random row for each."""
    directory.mkdir()
    save(directory)
    size = Tokenizer.load(directory).vocab_size
    added = [{"id": size + number, **each} for number, each in enumerate(entries)]
    edit_json(directory / "tokenizer.json", lambda raw: raw["added_tokens"].extend(added))
    add_rows(directory, len(added), fill=0.3)
    return directory


def add_rows(directory: Path, count: int, *, fill: float = 0.0) -> None:
    """Give embeddings and head `count` more rows, as padding to a multiple leaves them."""
    tensors = load_file(directory / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = torch.full((count, tensors[name].shape[1]), fill, dtype=tensors[name].dtype)
            tensors[name] = torch.cat([tensors[name], rows])
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    edit_json(directory / CONFIG, lambda raw: raw.update(vocab_size=raw["vocab_size"] + count))


def added_tokens(directory: Path) -> dict[str, tuple[int, bool]]:
    """The added tokens of a tokenizer.json behind the tiny vocabulary: the id of each, and whether it is special."""
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return {each["content"]: (each["id"], each["special"]) for each in raw["added_tokens"] if each["id"] >= 530}
