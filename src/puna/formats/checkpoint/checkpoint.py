"""A directory in Hugging Face's layout <-> Checkpoint: config, stop ids, tokenizer and weights of one Llama.

Code in the directory is never run. Writing is not atomic: the artifact layer passes a temporary directory and renames
it afterwards.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from puna.formats.chat.template import CHAT_TEMPLATE
from puna.formats.checkpoint.adapters.adapter import ADAPTER_HINT, is_adapter
from puna.formats.checkpoint.compressed.config import parse_quantization
from puna.formats.checkpoint.hf import config as hf_config
from puna.formats.checkpoint.hf import weights
from puna.formats.checkpoint.safe_files import find_file, read_json, write_json
from puna.formats.checkpoint.safetensors import writer
from puna.formats.checkpoint.safetensors.header import StoredTensor, read_layout
from puna.formats.checkpoint.source import Source
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.model.quantization.quantized import schemes_of
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import CheckpointError
from puna.pipeline.machine import free_memory

CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
SHARD_BYTES = 5_000_000_000
IMPORT_HINT = "`puna import` makes one of Meta's files, a .gguf file, an adapter and its base, or a name on the hub"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened directory: config and tensor headers are checked, weights are not read yet.

    Attributes:
        schemes: Quantization schemes by module path, for quantized modules only.

    Example:
        checkpoint = Checkpoint.open("models/base")
        model, tokenizer = checkpoint.load(torch.bfloat16), checkpoint.tokenizer()
    """

    path: Path
    config: LlamaConfig
    stop_ids: tuple[int, ...]
    schemes: Mapping[str, Scheme]
    layout: dict[str, StoredTensor] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, is_reward: bool = False) -> "Checkpoint":
        """Open a directory and check the config, and shape, dtype and position of every tensor.

        Args:
            path: Checkpoint directory.
            is_reward: Whether the directory must hold a reward model; False rejects reward models.

        Raises:
            CheckpointError: The directory is not a complete, supported checkpoint.
        """
        path = Path(path)
        config_path = find_file(path, CONFIG_NAME) if path.is_dir() else None
        if config_path is None:
            if is_adapter(path):
                raise CheckpointError(f"{path} is an adapter", expected="a checkpoint", hint=ADAPTER_HINT)
            given = f"{path} has no {CONFIG_NAME}" if path.exists() else f"{path} does not exist"
            raise CheckpointError(given, expected="a checkpoint directory", hint=IMPORT_HINT)
        raw = read_json(config_path)
        config = hf_config.parse_config(raw, config_path, is_reward=is_reward)
        quantization = parse_quantization(raw, config_path)
        layout = read_layout(path)
        schemes = weights.require_fit(path, layout, config, quantization)
        return cls(path, config, _read_stop_ids(path, raw, config_path), schemes, layout)

    @property
    def is_quantized(self) -> bool:
        return bool(self.schemes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings, or of the norms if the embeddings are quantized."""
        stored = self.layout.get("model.embed_tokens.weight") or self.layout["model.norm.weight"]
        return weights.TORCH_DTYPES[stored.dtype]

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer; CheckpointError if the embeddings have fewer rows than the tokenizer has ids."""
        for name in ("tokenizer.json", "tokenizer.model"):
            find_file(self.path, name)
        for name in ("tokenizer_config.json", "added_tokens.json"):
            if file := find_file(self.path, name):
                hf_config.refuse_code(read_json(file), file)
        tokenizer = Tokenizer.load(self.path)
        _require_rows(self.path, tokenizer, self.config)
        return tokenizer

    def load(self, dtype: torch.dtype | None = None) -> Llama:
        """Return the model in eval mode with memory-mapped weights; weights are copied for a different `dtype`.

        NOTE: while the model lives, the files may be replaced by renaming, but not modified.
        """
        return weights.map_weights(self.layout, self.config, self.schemes, dtype=dtype)

    def prefetch(self) -> None:
        """Read all weight files sequentially in the background; page faults alone would read small scattered blocks.

        Does nothing if the free memory is smaller than the files: early pages would be evicted before their first use.
        """
        paths = sorted({stored.file for stored in self.layout.values()})
        if sum(stored.end - stored.start for stored in self.layout.values()) <= free_memory():
            threading.Thread(target=weights.read_through, args=(paths,), daemon=True).start()

    def source(self) -> Source:
        """Return the model as a Source, for writing another format tensor by tensor."""
        weights.require_one_table(self.layout, self.config)
        generation = find_file(self.path, GENERATION_NAME)
        return Source(
            "Hugging Face",
            self.config,
            self.dtype,
            partial(weights.read_dequantized, self.layout, self.config, self.schemes),
            self.tokenizer(),
            hf_config.parse_sampling(read_json(generation), generation) if generation else None,
            self.stop_ids,
        )


def _read_stop_ids(path: Path, raw: dict, config_path: Path) -> tuple[int, ...]:
    """Return the stop ids; generation_config.json takes precedence over config.json, as in transformers' generate."""
    generation_path = find_file(path, GENERATION_NAME)
    if generation_path:
        stop_ids = hf_config.parse_stop_ids(read_json(generation_path), generation_path)
        if stop_ids:
            return stop_ids
    return hf_config.parse_stop_ids(raw, config_path)


def _require_rows(path: Path, tokenizer: Tokenizer, config: LlamaConfig) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: a tokenizer of {tokenizer.vocab_size:,} ids for {config.vocab_size:,} embeddings",
            expected="at most as many token ids as embeddings",
        )


def save_checkpoint(
    directory: Path,
    model: Llama,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    like: Source | None = None,
) -> None:
    """Write a model into an existing directory without a checkpoint, and fsync the files.

    Args:
        dtype: Dtype of floating-point weights; None keeps every tensor's dtype.
        like: Model that this model was made from, for sampling defaults and stop ids; None uses Meta's.
        shard_bytes: Largest size of a safetensors file.
    """
    _write_directory(
        directory,
        model.config,
        tokenizer,
        list(writer.model_entries(model, dtype)),
        dtype=dtype or model.dtype,
        schemes=schemes_of(model),
        sampling=like.sampling if like else None,
        other_stop_ids=like.other_stop_ids if like else (),
        shard_bytes=shard_bytes,
    )


def write_checkpoint(
    directory: Path, source: Source, *, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a Source as a checkpoint, with a few tensors in memory at a time.

    Args:
        directory: Existing directory without a checkpoint.
        dtype: Dtype of the weights; None keeps the source's dtype.
    """
    if source.tokenizer is None:
        raise CheckpointError(f"a {source.format} model without a tokenizer", expected="a model with a tokenizer")
    dtype = dtype or source.dtype
    _write_directory(
        directory,
        source.config,
        source.tokenizer,
        list(writer.source_entries(source, dtype)),
        dtype=dtype,
        sampling=source.sampling,
        other_stop_ids=source.other_stop_ids,
        shard_bytes=shard_bytes,
    )


def _write_directory(
    directory: Path,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    entries: list[writer.Entry],
    *,
    dtype: torch.dtype,
    shard_bytes: int,
    schemes: Mapping[str, Scheme] | None = None,
    sampling: Mapping[str, Any] | None = None,
    other_stop_ids: tuple[int, ...] = (),
) -> None:
    occupants = sorted(file.name for file in directory.glob("*.safetensors*")) or [
        file.name for file in directory.glob(CONFIG_NAME)
    ]
    if occupants:
        raise CheckpointError(f"{directory} already holds {occupants[0]}", expected="a directory without a checkpoint")
    _require_rows(directory, tokenizer, config)
    ids = {
        "stop_ids": (*tokenizer.stop_ids, *other_stop_ids),
        "bos_id": tokenizer.special("begin_of_text"),
        "pad_id": tokenizer.special("finetune_right_pad_id"),
    }
    rendered = hf_config.render_config(config, dtype=dtype, schemes=schemes, **ids)
    writer.write_weights(directory, entries, shard_bytes=shard_bytes)
    write_json(directory / CONFIG_NAME, rendered)
    write_json(directory / GENERATION_NAME, hf_config.render_generation_config(sampling=sampling, **ids))
    tokenizer.save(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    writer.sync_files(directory)
