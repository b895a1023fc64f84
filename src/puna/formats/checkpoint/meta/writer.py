"""A Source -> Meta's directory: params.json, tokenizer.model and consolidated.NN.pth, tensor by tensor.

Restricted to configs and tokenizers with a representation in Meta's format: Llama 3's own tokenizer. All weights are
stored in a single dtype.
"""

import base64
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from puna.formats.checkpoint.meta import names
from puna.formats.checkpoint.meta.params import render_params
from puna.formats.checkpoint.meta.pth_writer import STORAGES, PthWriter, Stored
from puna.formats.checkpoint.meta.reader import PARAMS_NAME, TOKENIZER_NAME
from puna.formats.checkpoint.safe_files import write_json
from puna.formats.checkpoint.safetensors.writer import sync_files
from puna.formats.checkpoint.source import Source, num_rotated_heads, tensor_shapes
from puna.formats.tokenizer.files import NUM_LLAMA3_RANKS, SPECIAL_TEXTS
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.errors import CheckpointError

# SHA-256 of the tokenizer.model of all Llama 3 models.
LLAMA3_RANKS = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"


def write_meta(directory: Path, source: Source, *, num_shards: int = 1, dtype: torch.dtype | None = None) -> None:
    """Write a model into an existing directory without a model, and fsync the files.

    Args:
        num_shards: Number of .pth files; must divide the split dimension of every matrix.
        dtype: Dtype of the weights; None keeps the source's dtype.

    Raises:
        CheckpointError: Meta's format cannot represent the model, or the disk is full.
    """
    dtype = dtype or source.dtype
    occupants = [*directory.glob("consolidated.*"), *directory.glob(PARAMS_NAME)]
    if occupants:
        raise CheckpointError(f"{directory} already holds {occupants[0].name}", expected="a directory without a model")
    if dtype not in STORAGES:
        raise CheckpointError(f"dtype {dtype}", expected=f"one of {', '.join(map(str, STORAGES))}")
    params = render_params(source.config)
    ranks = _render_ranks(source)
    shapes = tensor_shapes(source.config)
    parts = {name: _local_shape(name, shape, num_shards) for name, shape in shapes.items()}
    stored = {names.meta_name(name): Stored(key, dtype, shape) for key, (name, shape) in enumerate(parts.items())}
    if source.config.tie_embeddings:
        # Meta's code requires an output matrix even with tied embeddings: two names, one storage.
        stored[names.META_HEAD] = stored[names.meta_name(names.EMBEDDINGS)]
    write_json(directory / PARAMS_NAME, params)
    (directory / TOKENIZER_NAME).write_bytes(ranks)
    try:
        with ExitStack() as stack:
            paths = [directory / f"consolidated.{rank:02d}.pth" for rank in range(num_shards)]
            files = [stack.enter_context(PthWriter(path, stored)) for path in paths]
            for name in shapes:
                for file, part in zip(files, _parts(source, name, dtype, num_shards), strict=True):
                    file.write(part)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written: {error}", expected="a disk with room for it") from error
    sync_files(directory)


def _local_shape(name: str, shape: tuple[int, ...], num_shards: int) -> tuple[int, ...]:
    """Return the shape of a shard's part."""
    if names.is_norm(name):
        return shape
    local = list(shape)
    dim = names.split_dims(name)[0]
    if num_shards < 1 or local[dim] % num_shards:
        raise CheckpointError(f"{num_shards} shards of {name}, {list(shape)}", expected=f"a divisor of {local[dim]:,}")
    local[dim] //= num_shards
    return tuple(local)


def _parts(source: Source, name: str, dtype: torch.dtype, num_shards: int) -> Sequence[torch.Tensor]:
    """Return every shard's part of a tensor in Meta's layout."""
    tensor = source.read(name).to(dtype)
    if num_heads := num_rotated_heads(name, source.config):
        tensor = tensor[names.rows_of_pairs(num_heads, source.config.head_dim)]
    if names.is_norm(name):
        return [tensor] * num_shards
    # Without copies even for more shards than key/value heads: llama-models would read copies as further heads.
    return tensor.chunk(num_shards, names.split_dims(name)[0])


def _render_ranks(source: Source) -> bytes:
    """Return tokenizer.model; CheckpointError for any other tokenizer than Llama 3's, which the format implies."""
    tokenizer = source.tokenizer
    ranks = _ranks(tokenizer) if tokenizer else b""
    if hashlib.sha256(ranks).hexdigest() != LLAMA3_RANKS:
        given = "a tokenizer of its own" if tokenizer else f"a {source.format} model without a tokenizer"
        if more := [token.text for token in tokenizer.added if token.text not in SPECIAL_TEXTS] if tokenizer else []:
            given = f"a tokenizer with added tokens of its own ({', '.join(map(ascii, more[:3]))})"
        raise CheckpointError(
            given,
            expected="Llama 3's 128,000 tokens and 256 special ones, the only vocabulary of Meta's format",
            hint="Write this model in another format",
        )
    return ranks


def _ranks(tokenizer: Tokenizer) -> bytes:
    specials = {text[2:-2]: NUM_LLAMA3_RANKS + index for index, text in enumerate(SPECIAL_TEXTS)}
    if tokenizer.num_regular != NUM_LLAMA3_RANKS or dict(tokenizer.special_ids) != specials or tokenizer.text_tokens:
        return b""
    tokens = (tokenizer.decode_bytes([index]) for index in range(NUM_LLAMA3_RANKS))
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
