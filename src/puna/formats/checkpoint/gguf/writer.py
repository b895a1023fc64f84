"""Source -> a GGUF file for llama.cpp and Ollama, with a single tensor in memory at a time.

Matrices have the requested type, norms and RoPE factors float32. Rounding equals llama.cpp's plain quantizers,
without an importance matrix.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import torch

from puna.formats.checkpoint.gguf.blocks import CHUNK_VALUES, KINDS, encode
from puna.formats.checkpoint.gguf.container import ALIGNMENT, padding, render_header
from puna.formats.checkpoint.gguf.reader import SAMPLING
from puna.formats.checkpoint.gguf.tensors import EMBEDDINGS, OUTPUT, ROPE_FACTORS, gguf_name, rope_factors, to_pairs
from puna.formats.checkpoint.gguf.vocabulary import render_tokenizer
from puna.formats.checkpoint.source import Source, num_rotated_heads, tensor_shapes
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError

WrittenKind = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]
FILE_TYPES: dict[WrittenKind, int] = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}


class _Entry(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def write_gguf(
    path: Path, source: Source, *, kind: WrittenKind, name: str, template: str, licence: str = ""
) -> dict[str, str]:
    """Write a new file, fsync the file, and return the matrices with types different from `kind`.

    With Q4_0 the output matrix is stored as Q8_0 (llama.cpp uses Q6_K). Matrices with a row length
    not divisible by the block length are stored as F16.

    Args:
        kind: Tensor type of the matrices.
        template: Chat template (Jinja) for external programs.

    Returns:
        {tensor name: tensor type} of matrices with a type different from `kind`.
    """
    if source.tokenizer is None or source.tokenizer.vocab_size > source.config.vocab_size:
        size = source.tokenizer.vocab_size if source.tokenizer else "no"
        raise CheckpointError(
            f"a model of {source.config.vocab_size:,} embeddings with {size} token ids",
            expected="a tokenizer, and an embedding for every token id",
        )
    metadata = _general(source, kind, name, licence) | _sizes(source.config)
    metadata |= render_tokenizer(source.tokenizer, source.config.vocab_size, source.other_stop_ids)
    metadata["tokenizer.chat_template"] = template
    entries = _entries(source, kind)
    header = render_header(metadata, {name: (entry.kind, entry.shape) for name, entry in entries.items()})
    _write(path, header, entries)
    return {name: entry.kind for name, entry in entries.items() if len(entry.shape) == 2 and entry.kind != kind}


def _general(source: Source, kind: WrittenKind, name: str, licence: str) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.alignment": ALIGNMENT,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        **({"general.license": licence} if licence else {}),
        **_sampling(source),
    }


def _sampling(source: Source) -> dict[str, Any]:
    """Return the sampling defaults as GGUF keys; greedy decoding is temperature 0."""
    sampling = dict(source.sampling or {})
    sampling |= {"temperature": 0.0} if sampling.get("do_sample") is False else {}
    values = {key: (name, sampling[name]) for key, name in SAMPLING.items() if sampling.get(name) is not None}
    for name, value in values.values():
        if not 0 <= value < 2**31:
            raise CheckpointError(
                f"{name} = {value} of the sampling defaults", expected="a number from 0 to 2,147,483,647"
            )
    return {
        f"general.sampling.{key}": int(value) if key == "top_k" else float(value) for key, (_, value) in values.items()
    }


def _sizes(config: LlamaConfig) -> dict[str, Any]:
    sizes = {
        "block_count": config.num_layers,
        "context_length": config.max_context,
        "embedding_length": config.dim,
        "feed_forward_length": config.hidden_dim,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    return {f"llama.{name}": value for name, value in sizes.items()}


def _entries(source: Source, kind: WrittenKind) -> dict[str, _Entry]:
    config = source.config
    entries: dict[str, _Entry] = {}
    if config.rope_scaling:
        entries[ROPE_FACTORS] = _Entry("F32", (config.head_dim // 2,), partial(rope_factors, config))
    output = EMBEDDINGS if config.tie_embeddings else OUTPUT
    for name, shape in tensor_shapes(config).items():
        preferred = "Q8_0" if kind == "Q4_0" and gguf_name(name) == output else kind
        is_whole = shape[-1] % KINDS[preferred].block_len == 0
        stored = "F32" if len(shape) == 1 else preferred if is_whole else "F16"
        entries[gguf_name(name)] = _Entry(stored, shape, partial(_read, source, name))
    return entries


def _read(source: Source, name: str) -> torch.Tensor:
    tensor = source.read(name)
    num_heads = num_rotated_heads(name, source.config)
    return to_pairs(tensor, num_heads) if num_heads else tensor


def _write(path: Path, header: bytes, entries: Mapping[str, _Entry]) -> None:
    """Write the file completely, or remove the file on an error."""
    try:
        with path.open("xb") as file:
            try:
                file.write(header)
                for name, entry in entries.items():
                    _write_tensor(file, name, entry)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        raise CheckpointError(f"{path} already exists", expected="a new file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}", expected="a disk with room for it") from error


def _write_tensor(file: BinaryIO, name: str, entry: _Entry) -> None:
    tensor = entry.read().detach().cpu()
    assert tuple(tensor.shape) == entry.shape, name
    rows = tensor.reshape(-1, entry.shape[-1])
    largest = KINDS[entry.kind].largest
    num_bytes = 0
    for chunk in rows.split(max(1, CHUNK_VALUES // entry.shape[-1])):
        if not chunk.abs().amax() <= largest:
            raise CheckpointError(
                f"tensor {name} has a value of {chunk.abs().amax().item():g}",
                expected=f"at most {largest:g}, for {entry.kind}",
            )
        num_bytes += file.write(encode(chunk, entry.kind).data)
    file.write(padding(num_bytes))
