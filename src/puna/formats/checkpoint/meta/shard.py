"""consolidated.NN.pth -> memory-mapped tensors; a confined process parses the pickle.

The output of the process is validated against the file as untrusted input.
"""

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from puna.formats.checkpoint.meta.confine import run_confined
from puna.formats.checkpoint.safe_files import parse_json
from puna.pipeline.errors import CheckpointError

PROGRAM = "from puna.formats.checkpoint.meta.child import main; main()"
MAX_ANSWER_BYTES = 32 * 2**20
MAX_COUNT = 2**63
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IGNORED = {"rope.freqs"}  # A constant in files of Llama 1 and 2.


class TensorPosition(NamedTuple):
    """The position of a tensor: `stride` in elements, `start` in bytes of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    @property
    def num_spanned(self) -> int:
        """Number of elements from the first to the last element of the tensor."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, slots=True)
class Shard:
    """An opened .pth file.

    NOTE: while the object lives, the file may be replaced by renaming, but not modified.
    """

    path: Path
    tensors: dict[str, TensorPosition]
    mapped: mmap.mmap = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Find the tensors of a .pth file without reading weights; CheckpointError for damaged files."""
        try:
            with path.open("rb") as file:
                answer = parse_json(run_confined(PROGRAM, file, max_bytes=MAX_ANSWER_BYTES), path)
                if "error" in answer:
                    raise _error(path, answer["error"])
                # NOTE: copy-on-write, because torch requires writable memory; the file is never modified.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}", expected="a readable file") from error
        return cls(path, _parse_table(path, answer.get("tensors"), len(mapped)), mapped)

    def view(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped."""
        position = self.tensors[name]
        flat = torch.frombuffer(self.mapped, dtype=position.dtype, count=position.num_spanned, offset=position.start)
        return flat.as_strided(position.shape, position.stride)


def _error(path: Path, answer: Any) -> CheckpointError:
    fields = answer if isinstance(answer, dict) else {}
    given, expected, hint = (ascii(str(fields.get(key, "")))[1:-1][:400] for key in ("given", "expected", "hint"))
    return CheckpointError(f"{path}: {given}", expected=expected, hint=hint)


def _parse_table(path: Path, table: Any, file_bytes: int) -> dict[str, TensorPosition]:
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: no table of tensors", expected="a .pth file of weights")
    return {name: _parse_entry(path, name, entry, file_bytes) for name, entry in table.items() if name not in IGNORED}


def _parse_entry(path: Path, name: str, entry: Any, file_bytes: int) -> TensorPosition:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "stride": list(stride), "start": int(start)} if (
            _are_counts(shape) and _are_counts(stride) and len(shape) == len(stride) and _are_counts([start])
        ):
            pass
        case _:
            raise CheckpointError(f"{path}: tensor {name!a:.200} is malformed", expected="dtype, shape, stride, start")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!a:.200} is {dtype!a:.40}", expected=f"one of {', '.join(DTYPES)}")
    position = TensorPosition(DTYPES[dtype], tuple(shape), tuple(stride), start)
    end = start + position.num_spanned * position.dtype.itemsize
    if not 0 < math.prod(shape) <= position.num_spanned or end > file_bytes:
        raise CheckpointError(f"{path}: tensor {name!a:.200} ends at byte {end:,}", expected=f"at most {file_bytes:,}")
    return position


def _are_counts(values: list[Any]) -> bool:
    return len(values) <= 8 and all(type(value) is int and 0 <= value < MAX_COUNT for value in values)
