"""Config -> the network that training begins with, and its tokenizer."""

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

# Of a model trained from scratch, whose context the recipe leaves open: what it is trained on is at most as long.
DEFAULT_CONTEXT = 1024


def starting_model(config: TrainConfig) -> tuple[Llama, Tokenizer]:
    """Load the checkpoint to go on from, or initialize a model of the configured size."""
    device = choose_device(config.parallel.device)
    model, tokenizer = _start(config)
    # Several processes put what they keep of it onto their devices: parallelize.
    if ranks()[1] == 1:
        model.to(device)
    if config.checkpoint_activations:
        recompute_blocks(model)
    return model, tokenizer


def recompute_blocks(model: Llama) -> None:
    """Let each block keep what it reads and nothing else, and compute the rest again in the backward pass."""
    for block in model.layers:
        # In the place of the method, not around the block: the names of its parameters stay.
        block.forward = partial(recomputed, block.forward, use_reentrant=False)


def _start(config: TrainConfig) -> tuple[Llama, Tokenizer]:
    if config.start is not None:
        checkpoint = Checkpoint.open(config.start)
        if config.adapter is not None:
            return adapted_start(config, checkpoint), checkpoint.tokenizer()
        if checkpoint.is_quantized:
            hint = "An adapter can be trained beside it: the table [adapter], or --adapter.rank 16"
            raise ConfigError(f"start = {config.start} is quantized", expected="float weights", hint=hint)
        # Several processes take in float32 what they keep of it: parallelize.
        is_alone = ranks()[1] == 1
        return checkpoint.load(torch.float32 if is_alone else None), checkpoint.tokenizer()
    assert config.tokenizer is not None
    tokenizer = Tokenizer.load(config.tokenizer)
    model = Llama(size_of(config, tokenizer.vocab_size))
    model.initialize(config.seed)
    return model, tokenizer


def size_of(config: TrainConfig, vocab_size: int) -> LlamaConfig:
    """Return the sizes of a model from scratch; ConfigError for a name that is none or heads that do not divide.

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
        **widths, head_dim=head_dim, vocab_size=vocab_size, max_context=config.context or DEFAULT_CONTEXT
    )
