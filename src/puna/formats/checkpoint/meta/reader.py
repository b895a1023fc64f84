"""Meta's directory (params.json, consolidated.NN.pth, tokenizer.model) -> a Source that joins the shards.

Tensors are read on demand, with a single tensor in memory. Quantized files, LoRA, vision and mixture-of-experts models
are rejected.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from puna.formats.checkpoint.meta import names
from puna.formats.checkpoint.meta.confine import confinement
from puna.formats.checkpoint.meta.params import parse_params
from puna.formats.checkpoint.meta.shard import Shard
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.checkpoint.source import Source, num_rotated_heads, tensor_shapes
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError

PARAMS_NAME = "params.json"
TOKENIZER_NAME = "tokenizer.model"
CHUNK = 4096  # Rows per comparison, which bounds memory.


class OpenedMeta(NamedTuple):
    """A model, and the confinement of the process that parsed the pickles. Example: see `open_meta`."""

    source: Source
    confinement: str


class Join(NamedTuple):
    """How shards form a tensor: groups of `copies` adjacent shards hold equal parts, concatenated along `dim`.

    Example: `Join(dim=1, copies=1)` for o_proj.
    """

    dim: int
    copies: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The shards of a model as whole tensors in Hugging Face's layout. Example: see `open_meta`."""

    shards: Sequence[Shard]
    config: LlamaConfig
    joins: Mapping[str, Join]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor; CheckpointError if shards with copies of a part differ."""
        parts = self.parts(name)
        if not (num_heads := num_rotated_heads(name, self.config)):
            return parts[0] if len(parts) == 1 else torch.cat(parts, self.joins[name].dim)
        rows = names.rows_of_pairs(num_heads, self.config.head_dim)
        joined = parts[0].new_empty(len(rows), self.config.dim)
        for part, targets in zip(parts, rows.split(len(parts[0])), strict=True):
            joined.index_copy_(0, targets, part)
        return joined

    def parts(self, name: str) -> list[torch.Tensor]:
        """Return the distinct parts of a tensor, mapped."""
        views = [shard.view(names.meta_name(name)) for shard in self.shards]
        copies = self.joins[name].copies
        for index, view in enumerate(views):
            if index % copies and not _is_same(view, views[index - 1]):
                raise CheckpointError(
                    f"{self.shards[index].path}: {names.meta_name(name)} differs from the copy in the shard before",
                    expected="equal copies of the tensor in these shards",
                )
        return views[::copies]


def open_meta(directory: str | Path) -> OpenedMeta:
    """Open a directory; check params.json, and shape, dtype and position of every tensor.

    Raises:
        CheckpointError: The directory is incomplete, damaged or unsupported.

    Example:
        open_meta("downloads/Llama3.2-1B").source.config.num_layers
    """
    directory = Path(directory)
    params_path = find_file(directory, PARAMS_NAME) if directory.is_dir() else None
    if params_path is None:
        raise CheckpointError(f"{directory} has no {PARAMS_NAME}", expected="a directory of Meta's format")
    tokenizer_path = find_file(directory, TOKENIZER_NAME)
    tokenizer = Tokenizer.load(tokenizer_path) if tokenizer_path else None
    shards = [Shard.open(path) for path in _shard_paths(directory)]
    num_ids = tokenizer.vocab_size if tokenizer else None
    is_tied = names.META_HEAD not in shards[0].tensors
    config = parse_params(read_json(params_path), params_path, num_ids=num_ids, is_tied=is_tied)
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{directory}: a tokenizer of {tokenizer.vocab_size:,} ids for {config.vocab_size:,} embeddings",
            expected="at most as many token ids as embeddings",
        )
    joined = _join(shards, config)
    if not config.tie_embeddings and _has_equal_head(joined):
        config = replace(config, tie_embeddings=True)
    dtype = shards[0].tensors[names.meta_name(names.EMBEDDINGS)].dtype
    return OpenedMeta(Source("Meta", config, dtype, partial(Joined.read, joined), tokenizer), confinement().name)


def _shard_paths(directory: Path) -> list[Path]:
    """Return consolidated.00.pth, consolidated.01.pth and so on; CheckpointError for a gap."""
    file_names = {path.name for path in directory.iterdir() if re.fullmatch(r"consolidated.*\.pth", path.name)}
    expected = [f"consolidated.{index:02d}.pth" for index in range(max(1, len(file_names)))]
    for name in expected:
        if name not in file_names:
            raise CheckpointError(
                f"{directory / name} is missing among {len(file_names)} files",
                expected="consolidated.00.pth, consolidated.01.pth and so on without a gap",
            )
    paths = [find_file(directory, name) for name in expected]
    return [path for path in paths if path is not None]


def _join(shards: Sequence[Shard], config: LlamaConfig) -> Joined:
    """Compare the tensors of all shards with the config, and return the joined model."""
    directory = shards[0].path.parent
    # NOTE: the next three checks come before the network is built: a config may claim a billion layers.
    for layer in range(config.num_layers):
        if f"layers.{layer}.attention_norm.weight" not in shards[0].tensors:
            raise CheckpointError(f"{directory}: layers.{layer}.attention_norm.weight is missing")
    expected = names.meta_names(config)
    for shard in shards:
        for name in sorted(shard.tensors.keys() ^ expected):
            problem = "unexpected tensor" if name in shard.tensors else "no tensor"
            raise CheckpointError(
                f"{shard.path}: {problem} {name!a:.200}", expected=f"exactly the tensors that {PARAMS_NAME} implies"
            )
    num_spanned = sum(position.num_spanned for shard in shards for position in shard.tensors.values())
    if config.num_parameters > num_spanned:
        raise CheckpointError(
            f"{directory}: {num_spanned:,} weights in its shards", expected=f"{config.num_parameters:,} parameters"
        )
    shapes = tensor_shapes(config)
    return Joined(shards, config, {name: _find_join(shards, config, name, shape) for name, shape in shapes.items()})


def _find_join(shards: Sequence[Shard], config: LlamaConfig, name: str, shape: tuple[int, ...]) -> Join:
    """Derive the split of a tensor from the shapes of its parts."""
    positions = [shard.tensors[names.meta_name(name)] for shard in shards]
    if len({part.dtype for part in positions}) == 1:
        for join in _possible_joins(name, config, len(shards)):
            local = list(shape)
            local[join.dim] = local[join.dim] * join.copies // len(shards)
            is_whole = local[join.dim] * len(shards) == shape[join.dim] * join.copies
            if is_whole and all(part.shape == tuple(local) for part in positions):
                return join
    given = " and ".join(sorted({f"{list(part.shape)} {part.dtype}" for part in positions}))
    raise CheckpointError(
        f"{shards[0].path.parent}: {names.meta_name(name)} has {given:.200} in {len(shards)} shards",
        expected=f"equal parts of a tensor of shape {list(shape)}",
    )


def _possible_joins(name: str, config: LlamaConfig, num_shards: int) -> list[Join]:
    if names.is_norm(name):
        return [Join(0, num_shards)]
    joins = [Join(dim, 1) for dim in names.split_dims(name)]
    copies = names.num_copies(name, config, num_shards)
    return [*joins, Join(0, copies)] if copies > 1 else joins


def _has_equal_head(joined: Joined) -> bool:
    """Return whether the output matrix equals the embeddings; Meta's code needs both names even for tied embeddings."""
    head, embeddings = (joined.parts(name)[0][:1] for name in (names.HEAD, names.EMBEDDINGS))
    width = min(head.shape[1], embeddings.shape[1])
    if head.dtype != embeddings.dtype or not _is_same(head[:, :width], embeddings[:, :width]):
        return False
    whole = (joined.read(name).split(CHUNK) for name in (names.HEAD, names.EMBEDDINGS))
    return all(_is_same(*rows) for rows in zip(*whole, strict=True))


def _is_same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors are bitwise equal, NaN included."""
    bits = {2: torch.int16, 4: torch.int32}[left.dtype.itemsize]
    return torch.equal(left.view(bits), right.view(bits))
