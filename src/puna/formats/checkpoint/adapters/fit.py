"""An adapter and a base's config -> whether the adapter fits, by names and shapes; CheckpointError says why not."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from puna.formats.checkpoint.adapters.delta import Delta, matrices
from puna.formats.checkpoint.adapters.keys import (
    BASE_LAYER,
    DOWN,
    EMBEDDING,
    HEAD,
    MAGNITUDE,
    TOKENS,
    WHOLE,
    token_rows,
)
from puna.formats.checkpoint.hf.weights import FLOATS
from puna.formats.checkpoint.source import tensor_shapes
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError

Shape = tuple[int, ...]


class Misfit(NamedTuple):
    """A tensor of a different base. Example: see `misfits`.

    Attributes:
        kind: "target" for a tensor missing in the base, "rank" for a different shape.
    """

    kind: str
    given: str
    expected: str
    hint: str


def require_fit(path: Path, delta: Delta, base: LlamaConfig) -> None:
    """Raise CheckpointError unless every tensor of an adapter belongs to the base and has the right shape."""
    for misfit in misfits(delta, base):
        raise CheckpointError(f"{path}: {misfit.given}", expected=misfit.expected, hint=misfit.hint)


def misfits(delta: Delta, base: LlamaConfig) -> Iterator[Misfit]:
    """Yield every tensor of an adapter without a match in the base.

    Example:
        [misfit.given for misfit in misfits(adapter.delta, checkpoint.config)]
    """
    shapes, base_name = dict(tensor_shapes(base)), delta.config.base_name
    if base.tie_embeddings:
        shapes[HEAD] = shapes[EMBEDDING]
    yield from _table_misfits(delta, base)
    vocab_size = delta.vocab_size(base)
    for name, parts in delta.parts.items():
        if name not in shapes:
            hint = "The adapter belongs to another base" + (f": {base_name!a}" if base_name else "")
            yield Misfit("target", f"an adapter for {name!a}", "tensors of the base", hint)
            continue
        shape = (vocab_size, *shapes[name][1:]) if name in (EMBEDDING, HEAD) else shapes[name]
        yield from _shape_misfits(delta, name, shape)
        if TOKENS in parts:
            yield from _row_misfits(delta, name, shape, is_tied=base.tie_embeddings)


def _table_misfits(delta: Delta, base: LlamaConfig) -> Iterator[Misfit]:
    """Yield the missing table of a changed vocabulary: the embeddings, or the head."""
    vocab_size = delta.vocab_size(base)
    if vocab_size == base.vocab_size:
        return
    tables = {name: {*delta.parts.get(name, {})} & {WHOLE, BASE_LAYER} for name in (EMBEDDING, HEAD)}
    has_base = any(BASE_LAYER in parts for parts in tables.values())
    missing = [name for name, parts in tables.items() if not parts and not (base.tie_embeddings and has_base)]
    if missing:
        given = f"tables of {vocab_size:,} rows, and no {missing[0]}; the base has {base.vocab_size:,}"
        hint = (
            "Save the adapter with both: modules_to_save = ['embed_tokens', 'lm_head']; "
            f"or resize the base to {vocab_size:,} rows first and give that as the base"
        )
        yield Misfit("rank", given, "embeddings and head of one size", hint)


def _row_misfits(delta: Delta, name: str, shape: Shape, *, is_tied: bool) -> Iterator[Misfit]:
    rows, stored = token_rows(delta.config, name, is_tied=is_tied), delta.layout[delta.parts[name][TOKENS]].shape
    if not rows or max(rows) >= shape[0] or stored != (len(rows), shape[1]):
        yield Misfit(
            "rank",
            f"trainable tokens of shape {list(stored)} for {len(rows)} ids up to {max(rows, default=0):,}",
            f"a row of {shape[1]} numbers for each id of trainable_token_indices, all below {shape[0]:,}",
            "Take adapter_config.json and weights of one training, and its base",
        )


def _shape_misfits(delta: Delta, name: str, shape: Shape) -> Iterator[Misfit]:
    parts = delta.parts[name]
    for part, (given, expected) in dict(_expected_shapes(delta, parts, shape)).items():
        if given != expected:
            yield Misfit(
                "rank",
                f"{parts.get(part, f'{part} of {name}')!a} has shape {given or 'none'}",
                f"{list(expected)}, as the base has it",
                "The adapter belongs to another base, or was trained with another vocabulary",
            )
    for key in parts.values():
        if delta.layout[key].dtype not in FLOATS:
            hint = "Save the adapter in floats"
            yield Misfit("rank", f"{key!a} is {delta.layout[key].dtype}", " or ".join(FLOATS), hint)


def _expected_shapes(
    delta: Delta, parts: Mapping[str, str], shape: Shape
) -> Iterator[tuple[str, tuple[Shape, Shape]]]:  # fmt: skip
    """Yield part, stored shape and required shape."""
    stored = {part: delta.layout[key].shape for part, key in parts.items()}
    for part in (WHOLE, BASE_LAYER):
        if part in parts:
            yield part, (stored[part], shape)
    if not {*parts} - {WHOLE, BASE_LAYER, TOKENS}:
        return
    down, up = matrices(parts)
    out_dim, in_dim = shape if down == DOWN else shape[::-1]
    rank = stored[down][0] if stored.get(down) else 0
    yield down, (stored.get(down, ()), (rank, in_dim))
    yield up, (stored.get(up, ()), (out_dim, rank))
    if MAGNITUDE in stored:
        yield MAGNITUDE, ((stored[MAGNITUDE] + (0,))[:1], (out_dim,))
