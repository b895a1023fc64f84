"""Values of tensors -> findings: NaN, infinity, zeros, constants, equal matrices.

About 8 MiB of a tensor are in memory at a time. Distributions are not judged: finite, varied values count as trained.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console

from puna.formats.checkpoint.hf.weights import TORCH_DTYPES
from puna.formats.checkpoint.safetensors.header import StoredTensor
from puna.pipeline.errors import CheckpointError
from puna.pipeline.progress import Progress
from puna.planning.doctor.report import Report, listed

CHUNK_BYTES = 8 * 2**20
BAR_VALUES = 2**29  # smaller work is done in a second or two: no progress bar
COPY_REMEDY = "Take an earlier save or copy the files again: no program computes anything sensible from this"


class Readable(NamedTuple):
    """A tensor of any file format, with values in pieces."""

    where: str
    dtype: str
    shape: tuple[int, ...]
    num_values: int
    pieces: Callable[[], Iterator[torch.Tensor]]


class Values(NamedTuple):
    """Statistics of a tensor from a single pass; `low` and `high` are NaN for a tensor with NaN."""

    low: float
    high: float
    checksum: int

    @property
    def has_nan(self) -> bool:
        return self.low != self.low

    @property
    def is_finite(self) -> bool:
        return self.low - self.low == 0 and self.high - self.high == 0

    @property
    def is_constant(self) -> bool:
        return self.low == self.high and self.is_finite


def readable(layout: Mapping[str, StoredTensor]) -> dict[str, Readable]:
    """Return the float tensors of safetensors files, in file order."""
    rows = sorted(layout.items(), key=lambda item: (item[1].file, item[1].start))
    return {
        name: Readable(
            stored.file.name,
            stored.dtype,
            stored.shape,
            (stored.end - stored.start) // TORCH_DTYPES[stored.dtype].itemsize,
            partial(_pieces, stored),
        )
        for name, stored in rows
        if stored.dtype in TORCH_DTYPES and stored.end > stored.start
    }


def _pieces(stored: StoredTensor) -> Iterator[torch.Tensor]:
    with stored.file.open("rb") as file:
        data_start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(data_start + stored.start)
        remaining = stored.end - stored.start
        while remaining:
            chunk = bytearray(file.read(min(remaining, CHUNK_BYTES)))
            if not chunk or len(chunk) % TORCH_DTYPES[stored.dtype].itemsize:
                raise CheckpointError(
                    f"{stored.file} became shorter while it was read",
                    expected="a file that nothing writes during the check",
                )
            remaining -= len(chunk)
            yield torch.frombuffer(chunk, dtype=TORCH_DTYPES[stored.dtype])


def scan(tensors: Mapping[str, Readable], report: Report, console: Console) -> dict[str, Values]:
    """Return statistics of all tensors by name; an unreadable file becomes a finding."""
    total = sum(tensor.num_values for tensor in tensors.values())
    scanned: dict[str, Values] = {}
    quiet = Console(quiet=True)
    with Progress(console if total > BAR_VALUES else quiet, total, "reading weights", unit="values") as bar:
        for name, tensor in tensors.items():
            with report.attempt("weights-unreadable", tensor.where):
                scanned[name] = _measure(tensor.pieces(), bar)
    return scanned


def _measure(pieces: Iterable[torch.Tensor], bar: Progress) -> Values:
    low, high, checksum = float("inf"), float("-inf"), 0
    for piece in pieces:
        least, most = (value.item() for value in piece.aminmax())
        if least != least:
            return Values(least, most, 0)
        low, high = min(low, least), max(high, most)
        checksum = zlib.crc32(piece.flatten().view(torch.uint8).numpy().data, checksum)
        bar.advance(piece.numel())
    return Values(low, high, checksum)


def check_values(tensors: Mapping[str, Readable], scanned: Mapping[str, Values], report: Report) -> None:
    """Report tensors with values that training never gives; norms of ones, the initial value, pass."""
    matrices = {name for name in scanned if len(tensors[name].shape) > 1}
    nan = [name for name, values in scanned.items() if values.has_nan]
    infinite = [name for name, values in scanned.items() if not values.has_nan and not values.is_finite]
    flat = {name: values.low for name, values in scanned.items() if values.is_constant}
    zero = [name for name, value in flat.items() if value == 0]
    is_half = any(tensors[name].dtype == "F16" for name in infinite)
    half_remedy = "Convert the original weights to bfloat16: float16 ends at 65,504"
    train_remedy = "Train it, unless layers were added on purpose: what passes through it is lost"
    made_remedy = "Check how the weights were made: training doesn't end like this"
    findings = (
        ("value-nan", nan, "NaN in", COPY_REMEDY),
        ("value-infinite", infinite, "infinity in", half_remedy if is_half else COPY_REMEDY),
        ("norm-zero", [name for name in zero if name not in matrices], "only zeros in", COPY_REMEDY),
        ("value-zero", [name for name in zero if name in matrices], "only zeros in", train_remedy),
        ("value-constant", [name for name in flat if name in matrices and flat[name]], "one value in", made_remedy),
        ("value-twin", _twins(tensors, scanned, matrices - flat.keys()), "the same values in", made_remedy),
    )
    for code, names, phrase, remedy in findings:
        if names:
            report.add(code, "weights", f"{phrase} {listed(names)}", remedy)


def _twins(tensors: Mapping[str, Readable], scanned: Mapping[str, Values], matrices: set[str]) -> list[str]:
    """Return pairs of equal matrices of layers; embeddings and lm_head may be tied."""
    first: dict[tuple[object, ...], str] = {}
    twins: list[str] = []
    for name, values in scanned.items():
        is_layer = name.startswith(("model.layers.", "base_model.", "blk."))
        if name in matrices and is_layer and values.is_finite:
            other = first.setdefault((tensors[name].shape, tensors[name].dtype, values), name)
            twins += [f"{name} = {other}"] if other != name else []
    return twins
