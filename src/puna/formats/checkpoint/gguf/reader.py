"""A GGUF file of a Llama -> Source: config, tokenizer, and tensors with Hugging Face's names.

Unknown keys of llama.* are rejected, since a key may change the computation.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from puna.formats.checkpoint.fields import Fields
from puna.formats.checkpoint.gguf.blocks import DTYPES, KINDS, decode
from puna.formats.checkpoint.gguf.container import OTHER_KIND_HINT, GgufFile, KindError, read_gguf
from puna.formats.checkpoint.gguf.tensors import (
    EMBEDDINGS,
    OUTPUT,
    ROPE_FACTORS,
    find_scaling,
    gguf_name,
    to_halves,
)
from puna.formats.checkpoint.gguf.vocabulary import parse_stop_ids, parse_tokenizer
from puna.formats.checkpoint.source import Source, num_rotated_heads, tensor_shapes
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError, ConfigError

TENSORS_PER_LAYER = 9

# Supported values of optional keys.
FIXED: dict[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "general.quantization_version": (2,),
    "split.count": (0, 1),
    "llama.expert_count": (0, 1),
    "llama.expert_used_count": (0, 1),
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scale_linear": (1.0,),
    "llama.attention.causal": (True,),
    "llama.use_parallel_residual": (False,),
}
SIZES = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base",
}  # fmt: skip
IGNORED = {"tensor_data_layout"}
# Sampling defaults: GGUF's keys -> keys of generation_config.json.
SAMPLING = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
SAMPLING |= {"penalty_repeat": "repetition_penalty"}


def open_gguf(path: str | Path) -> Source:
    """Open a GGUF file of a Llama as a Source, without reading weights; CheckpointError for unsupported files.

    Example:
        write_checkpoint(Path("models/base"), open_gguf("llama.gguf"))
    """
    file = read_gguf(path)
    _require_readable(file)
    config = parse_config(file)
    _require_fit(file, config)
    kind = file.tensors[EMBEDDINGS].kind
    tokenizer = parse_tokenizer(file, config.vocab_size)
    return Source(
        "GGUF",
        config,
        # Quantized weights are read as float32, but bfloat16 holds their precision.
        DTYPES.get(kind, torch.bfloat16),
        partial(_read, file, config),
        tokenizer,
        parse_sampling(file),
        parse_stop_ids(file, tokenizer) if tokenizer else (),
    )


def _require_readable(file: GgufFile) -> None:
    for name, tensor in file.tensors.items():
        if tensor.kind not in KINDS:
            raise KindError(
                f"{file.path}: tensor {name!a:.100} is stored as {tensor.kind}",
                expected=f"one of {', '.join(KINDS)}",
                hint=OTHER_KIND_HINT,
            )


def parse_config(file: GgufFile) -> LlamaConfig:
    """Return the config of the metadata and the RoPE factors, without checks of other tensors."""
    _require_llama(file)
    fields = Fields(file.metadata, file.path, "llama.")
    num_heads = fields.integer("attention.head_count")
    dim = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", dim // num_heads)
    vocab_size = file.tensors[EMBEDDINGS].shape[0]
    equal = {"attention.value_length": head_dim, "rope.dimension_count": head_dim, "vocab_size": vocab_size}
    for name, size in equal.items():
        if fields.integer(name, size) != size:
            raise fields.fail(name, str(size))
    try:
        config = LlamaConfig(
            dim=dim,
            hidden_dim=fields.integer("feed_forward_length"),
            head_dim=head_dim,
            num_layers=fields.integer("block_count"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
            vocab_size=vocab_size,
            max_context=fields.integer("context_length"),
            norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
            rope_theta=fields.number("rope.freq_base", 10_000.0),
            tie_embeddings=OUTPUT not in file.tensors,
        )
    except ConfigError as error:
        raise CheckpointError(f"{file.path}: {error.given}", expected=error.expected) from error
    return _with_scaling(file, config)


def _require_llama(file: GgufFile) -> None:
    fields = Fields(file.metadata, file.path)
    if not fields.is_one_of("general.architecture", ("llama",)):
        raise fields.fail("general.architecture", "'llama'")
    for key, allowed in FIXED.items():
        if key in file.metadata and not fields.is_one_of(key, allowed):
            raise fields.fail(key, f"{allowed[-1]!r}, the only one Puna reads")
    known = {f"llama.{name}" for name in SIZES | IGNORED} | FIXED.keys()
    for key in file.metadata:
        if key.startswith("llama.") and key not in known:
            raise fields.fail(key, "only settings of a plain Llama")
    if EMBEDDINGS not in file.tensors:
        raise CheckpointError(f"{file.path}: tensor {EMBEDDINGS} is missing", expected="the weights of a Llama")


def _require_fit(file: GgufFile, config: LlamaConfig) -> None:
    """Raise CheckpointError unless names and shapes of the tensors equal those of the config, rope_freqs aside.

    NOTE: number of layers and sizes are compared with the file before the network is built, which takes memory per
    layer.
    """
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
    expected_count = TENSORS_PER_LAYER * config.num_layers + 2 + (not config.tie_embeddings)
    if len(tensors) != expected_count or config.num_parameters > 2 * len(file.data):
        raise CheckpointError(
            f"{file.path}: {len(tensors):,} tensors in {len(file.data):,} bytes",
            expected=f"{expected_count:,} tensors with {config.num_parameters:,} parameters, according to the metadata",
        )
    for name, shape in tensor_shapes(config).items():
        tensor = tensors.get(gguf_name(name))
        if tensor is None or tensor.shape != shape:
            given = f"has shape {list(tensor.shape)}" if tensor else "is missing"
            raise CheckpointError(f"{file.path}: tensor {gguf_name(name)} {given}", expected=f"shape {list(shape)}")


def _with_scaling(file: GgufFile, config: LlamaConfig) -> LlamaConfig:
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is None:
        return config
    if (factors.kind, factors.shape) != ("F32", (config.head_dim // 2,)):
        raise CheckpointError(
            f"{file.path}: tensor {ROPE_FACTORS} is {factors.kind} of shape {list(factors.shape)}",
            expected=f"F32 of shape [{config.head_dim // 2}]",
        )
    values = decode(file.content(ROPE_FACTORS), "F32", factors.shape)
    return replace(config, rope_scaling=find_scaling(values, config, file))


def _read(file: GgufFile, config: LlamaConfig, name: str) -> torch.Tensor:
    """Return a tensor by Hugging Face's name: plain floats mapped, quantized blocks as float32."""
    stored = file.tensors[gguf_name(name)]
    tensor = decode(file.content(gguf_name(name)), stored.kind, stored.shape)
    num_heads = num_rotated_heads(name, config)
    return to_halves(tensor, num_heads) if num_heads else tensor


def parse_sampling(file: GgufFile) -> dict[str, Any] | None:
    """Return the sampling defaults with the keys of generation_config.json; None if the file has none."""
    keys = {name: f"general.sampling.{key}" for key, name in SAMPLING.items()}
    sampling = {name: file.metadata[key] for name, key in keys.items() if key in file.metadata}
    for name, value in sampling.items():
        if not isinstance(value, int | float) or not 0 <= value < 1e30:
            raise Fields(file.metadata, file.path).fail(keys[name], "a number")
    # Temperature 0 means greedy in llama.cpp; transformers rejects 0.
    if sampling.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True, **sampling} if sampling else None
