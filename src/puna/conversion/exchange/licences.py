"""What goes along when a model changes its format: progress on the terminal, and the licences beside the weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from puna.formats.checkpoint.safe_files import find_file
from puna.formats.checkpoint.source import Source
from puna.pipeline.artifacts import licence
from puna.pipeline.progress import Progress

MAX_TEXT_BYTES = 2**20
TERMS = (licence.TEXT_NAME, licence.NOTICE_NAME, licence.POLICY_NAME)


def watched(source: Source, bar: Progress) -> Source:
    """Return the source with each tensor counted on the bar as it is read."""
    read_values = counted = 0

    def read(name: str) -> torch.Tensor:
        nonlocal read_values, counted
        tensor = source.read(name)
        read_values += tensor.numel()
        bar.advance(read_values // 10**6 - counted)
        counted = read_values // 10**6
        return tensor

    return replace(source, read=read)


def carry_licences(folder: Path, output: Path) -> None:
    """Copy the agreement, the notice and the use policy that lie with a model: they go with what is made of it."""
    for path in sorted(folder.iterdir()):
        is_text = any(pattern.fullmatch(path.name) for pattern in TERMS)
        real = find_file(folder, path.name) if is_text and path.is_file() else None
        if real and real.stat().st_size <= MAX_TEXT_BYTES and not (output / path.name).exists():
            shutil.copyfile(real, output / path.name)
