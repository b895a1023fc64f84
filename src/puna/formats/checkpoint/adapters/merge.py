"""A base and an adapter -> a merged Source: the adapter's update is added to every tensor on reading, in float32.

Merges LoRA, rsLoRA and DoRA of linear layers and embeddings, rows of chosen tokens, and tensors saved whole. Callers
reject a quantized base, which has no exact merge.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from puna.formats.checkpoint.adapters.adapter import Adapter, listed
from puna.formats.checkpoint.adapters.config import AdapterConfig
from puna.formats.checkpoint.adapters.fit import require_fit
from puna.formats.checkpoint.adapters.patterns import module_settings
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.pipeline.errors import TokenizerError


def merged(base: Source, adapter: Adapter) -> Source:
    """Return the base with the adapter's update added to every tensor on reading, in float32.

    Tied embeddings and head become two tables if PEFT computes with two. A grown vocabulary brings larger tables, and
    the tokenizer in the adapter's directory.

    Example:
        merged(Checkpoint.open("models/base").source(), open_adapter(Path("adapters/acme")))
    """
    require_fit(adapter.path, adapter.delta, base.config)
    config = adapter.delta.merged_config(base.config)
    tokenizer = _tokenizer(adapter.path, base, config.vocab_size)
    read = partial(adapter.delta.apply, base)
    return replace(base, format=f"{base.format} with an adapter", config=config, tokenizer=tokenizer, read=read)


def merge_notes(adapter: Adapter, base: LlamaConfig) -> tuple[str, ...]:
    """Return notes for the log: tolerated doubts, and changed tables."""
    missing = missing_targets(adapter.config, adapter.parts, base)
    lost = f"the adapter holds nothing for {listed(missing)}, which it targets; they stay as in the base, as in PEFT"
    tables = describe_tables(base, adapter.delta.merged_config(base))
    return (*adapter.notes, *([lost] if missing else []), *tables)


def missing_targets(config: AdapterConfig, parts: Mapping[str, Mapping[str, str]], base: LlamaConfig) -> list[str]:
    """Return the targeted modules of a base without stored matrices; PEFT warns of missing keys."""
    modules = [name.removesuffix(".weight") for name, shape in tensor_shapes(base).items() if len(shape) == 2]
    if config.targets is None or config.is_tied or not config.is_lora:
        return []
    settings = module_settings(config, modules)
    return [module for module in modules if settings[module].is_target and f"{module}.weight" not in parts]


def describe_tables(base: LlamaConfig, config: LlamaConfig) -> Iterator[str]:
    """Yield differences between the tables of a merged model and of the base."""
    if config.vocab_size != base.vocab_size:
        yield f"the adapter has a vocabulary of its own: {config.vocab_size:,} rows instead of {base.vocab_size:,}"
    if base.tie_embeddings and not config.tie_embeddings:
        yield "head and embeddings, one table in the base, become two: the adapter changes them apart, as PEFT does"


def _tokenizer(directory: Path, base: Source, num_rows: int) -> Tokenizer | None:
    """Return the adapter's tokenizer if the adapter added tokens, else the base's."""
    if base.tokenizer is None or not (directory / "tokenizer.json").is_file():
        return base.tokenizer
    try:
        tokenizer = Tokenizer.load(directory)
    except TokenizerError:
        if num_rows != base.config.vocab_size:
            raise
        return base.tokenizer
    return tokenizer if base.tokenizer.vocab_size < tokenizer.vocab_size <= num_rows else base.tokenizer
