"""Paths in a step's settings -> networks, tokenizers and rows, read from the disk or from sketches of pending steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.data.dataset import Dataset
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME as ADAPTER_NAME
from puna.formats.checkpoint.adapters.folder import base_of
from puna.formats.checkpoint.detect import open_source
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.pipeline.errors import DataError
from puna.pipeline.estimate import Known, NotKnownYetError, Sketch

# Largest number of rows that a sample takes from one source.
MAX_SAMPLE = 1000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class SampledDataset(Dataset):
    """A dataset with a sample of the rows, repeated up to the expected number of rows.

    Example:
        >>> len(SampledDataset(["first row", "second row"], num_rows=600))
        600
    """

    def __init__(self, rows: Sequence[Any], num_rows: int):
        self._rows, self._num_rows = rows, num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Any:
        return self._rows[index % len(self._rows)]

    def location(self, index: int) -> str:
        return f"row {index + 1} of a pending dataset"

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return all indices in ascending order, for every seed and epoch."""
        return np.arange(self._num_rows)


def network_of(known: Known, path: Path) -> LlamaConfig:
    """Return the network config of a checkpoint; for an adapter, the config of the base model.

    Example:
        >>> known.pending[Path("build/base")] = Sketch(network=SIZES["1b"])
        >>> network_of(known, Path("build/base")).num_layers
        16
    """
    sketch = known.sketch(path)
    if sketch is not None:
        if sketch.network is None:
            raise NotKnownYetError(path)
        return sketch.network
    base = base_of(path) if (path / ADAPTER_NAME).is_file() else None
    return open_source(base or path).source.config


def tokenizer_of(known: Known, path: Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint or tokenizer artifact.

    Example:
        >>> tokenizer_of(Known(), Path("build/prune")).vocab_size > 0
        True
    """
    return Tokenizer.load(tokenizer_path(known, path))


def tokenizer_path(known: Known, path: Path) -> Path:
    """Return the existing directory of the tokenizer.

    Raises:
        NotKnownYetError: A pending step has yet to write the tokenizer.

    Example:
        >>> known.pending[Path("build/base")] = Sketch(tokenizer=Path("models/llama"))
        >>> tokenizer_path(known, Path("build/base")).name
        'llama'
    """
    sketch = known.sketch(path)
    directory = path if sketch is None else sketch.tokenizer
    if directory is None:
        raise NotKnownYetError(path)
    base = base_of(directory) if (directory / ADAPTER_NAME).is_file() else None
    return base or directory


def holds_tokenizer(path: Path) -> bool:
    """Tell whether a directory has a tokenizer file that Puna reads."""
    return any((path / name).is_file() for name in TOKENIZER_FILES)


def dataset_of(known: Known, paths: Sequence[Path], kinds: Sequence[str]) -> Dataset:
    """Return the rows of the sources: every row if all sources are on disk, else a sample of the expected length.

    Example:
        >>> sketch = Sketch(samples={"conversations": ["first", "second"]}, num_rows={"conversations": 600})
        >>> known.pending[Path("build/data")] = sketch
        >>> len(dataset_of(known, [Path("build/data")], ["conversations"]))
        600
    """
    sketches = [known.sketch(path) for path in paths]
    if all(sketch is None for sketch in sketches):
        return Dataset(paths, kinds)
    samples = [
        _of_kinds(sketch, kinds) if sketch else _on_disk(path, kinds)
        for path, sketch in zip(paths, sketches, strict=True)
    ]
    total = sum(count for _, count in samples)
    if not total or not any(rows for rows, _ in samples):
        names = ", ".join(map(str, paths))
        raise DataError(f"no {' or '.join(kinds)} in {names}", expected="rows of this kind")
    rows: list[Any] = []
    for sample, count in samples:
        rows += sample[: max(1, round(MAX_SAMPLE * count / total))]
    return SampledDataset(rows, total)


def _of_kinds(sketch: Sketch, kinds: Sequence[str]) -> tuple[list[Any], int]:
    rows = [row for kind in kinds for row in sketch.samples.get(kind, ())]
    return rows, sum(sketch.num_rows.get(kind, 0) for kind in kinds)


def _on_disk(path: Path, kinds: Sequence[str]) -> tuple[list[Any], int]:
    dataset = Dataset([path], kinds)
    return [dataset[index] for index in range(min(len(dataset), MAX_SAMPLE))], len(dataset)
