"""A checkpoint small enough to write in a test, and functions that damage one.

The model has two layers of width 48 with random weights and a tokenizer of 530 tokens.

Example:
    >>> from tempfile import mkdtemp
    >>> directory = Path(mkdtemp()) / "model"
    >>> save(directory).config.num_layers
    2
    >>> edit_json(directory / CONFIG, lambda config: config.pop("rope_scaling"))
"""

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from puna.formats.checkpoint.checkpoint import save_checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.llama import Llama
from puna.model.quantization.quantized import round_linears
from puna.model.quantization.scheme import INT8, Scheme

SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)
TOKENS = torch.arange(40) * 7 % 250
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of 530 tokens."""
    return train_tokenizer(["the quick brown fox jumps over the lazy dog " * 3], vocab_size=530, split_digits=False)


def random_llama(*, tied: bool = False, scaling: RopeScaling | None = SCALING) -> Llama:
    """Return a Llama with two layers and the same random weights at every call.

    Args:
        tied: Whether the output layer shares the embedding matrix.
        scaling: RoPE scaling of the configuration.
    """
    config = LlamaConfig(48, 80, 16, 2, 4, 2, tokenizer().vocab_size, 16_384, rope_scaling=scaling, tie_embeddings=tied)
    model = Llama(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return model.eval()


def logits_of(model: Llama) -> torch.Tensor:
    """Compute the logits at the 40 tokens of `TOKENS`, as a matrix of tokens by vocabulary."""
    with torch.no_grad():
        return model.logits(model(TOKENS, torch.arange(len(TOKENS)), packed_attend([len(TOKENS)])))


def save(directory: Path, **options: Any) -> Llama:
    """Save the random Llama as a checkpoint and return the model.

    Args:
        directory: Where the checkpoint's files go.
        options: `tied`, and options of `save_checkpoint`.
    """
    model = random_llama(tied=options.pop("tied", False))
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint(directory, model, tokenizer(), **options)
    return model


def save_quantized(directory: Path, *, tied: bool = False, scheme: Scheme = INT8) -> Llama:
    """Save the random Llama with quantized linear layers, in several shards, and return the model."""
    model = random_llama(tied=tied)
    round_linears(model, scheme)
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint(directory, model, tokenizer(), shard_bytes=30_000)
    return model


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a JSON file with its top object changed in place by `change`."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a safetensors file with its JSON header changed in place by `change` and its data as before."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
