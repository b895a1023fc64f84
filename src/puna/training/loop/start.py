"""Config -> the initial model and the tokenizer."""

from dataclasses import replace
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint as recomputed

from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import SIZES, LlamaConfig
from puna.model.kernels.device import choose_device
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import ranks
from puna.training.loop.adapter import adapted_start
from puna.training.settings import TrainConfig

# Context length of a new model without max_length in the recipe; no training example is longer.
DEFAULT_CONTEXT = 1024


def starting_model(config: TrainConfig) -> tuple[Llama, Tokenizer]:
    """Load the checkpoint of init_from, or initialize a model of the configured size."""
    device = choose_device(config.parallel.device)
    model, tokenizer = _start(config)
    # With several processes `parallelize` moves the shards to their devices.
    if ranks()[1] == 1:
        model.to(device)
    if config.checkpoint_activations:
        recompute_blocks(model)
    return model, tokenizer


def recompute_blocks(model: Llama) -> None:
    """Checkpoint activations: every layer keeps only the input and is recomputed in the backward pass."""
    for block in model.layers:
        # The method is replaced, not wrapped by a module: parameter names stay.
        block.forward = partial(recomputed, block.forward, use_reentrant=False)


def _start(config: TrainConfig) -> tuple[Llama, Tokenizer]:
    if config.init_from is not None:
        checkpoint = Checkpoint.open(config.init_from)
        if config.adapter is not None:
            return adapted_start(config, checkpoint), checkpoint.tokenizer()
        if checkpoint.is_quantized:
            hint = "An adapter can be trained beside it: the table [adapter], or --adapter.rank 16"
            raise ConfigError(f"init_from = {config.init_from} is quantized", expected="float weights", hint=hint)
        # With several processes `parallelize` converts the shards to float32.
        is_alone = ranks()[1] == 1
        return checkpoint.load(torch.float32 if is_alone else None), checkpoint.tokenizer()
    assert config.tokenizer is not None
    tokenizer = Tokenizer.load(config.tokenizer)
    model = Llama(size_of(config, tokenizer.vocab_size))
    model.initialize(config.seed)
    return model, tokenizer


def size_of(config: TrainConfig, vocab_size: int) -> LlamaConfig:
    """Return the widths of a new model.

    Raises:
        ConfigError: The name of the size is unknown, or dim is not a multiple of num_heads.

    Example:
        >>> config = TrainConfig(data=["shop"], size="1b", tokenizer="tokenizer", steps=10)
        >>> size_of(config, vocab_size=4096).vocab_size
        4096
    """
    if isinstance(config.size, str):
        if config.size not in SIZES:
            raise ConfigError(f"size = '{config.size}'", expected=f"{', '.join(SIZES)}, or a table of widths")
        return replace(SIZES[config.size], vocab_size=vocab_size)
    assert config.size is not None
    widths = config.size.model_dump()
    head_dim, rest = divmod(config.size.dim, config.size.num_heads)
    if rest:
        raise ConfigError(
            f"size.dim = {config.size.dim}", expected=f"a multiple of num_heads = {config.size.num_heads}"
        )
    return LlamaConfig(
        **widths, head_dim=head_dim, vocab_size=vocab_size, max_context=config.max_length or DEFAULT_CONTEXT
    )
