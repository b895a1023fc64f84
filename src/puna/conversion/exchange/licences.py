"""Licence files and the progress bar of a format conversion."""

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


def counted(source: Source, bar: Progress) -> Source:
    """Return the source with a progress bar that counts millions of values read."""
    num_values = num_shown = 0

    def read(name: str) -> torch.Tensor:
        nonlocal num_values, num_shown
        tensor = source.read(name)
        num_values += tensor.numel()
        bar.advance(num_values // 10**6 - num_shown)
        num_shown = num_values // 10**6
        return tensor

    return replace(source, read=read)


def copy_licences(folder: Path, output: Path) -> None:
    """Copy licence, notice and use policy from a model's directory to the output; existing files stay."""
    for path in sorted(folder.iterdir()):
        is_text = any(pattern.fullmatch(path.name) for pattern in TERMS)
        real = find_file(folder, path.name) if is_text and path.is_file() else None
        if real and real.stat().st_size <= MAX_TEXT_BYTES and not (output / path.name).exists():
            shutil.copyfile(real, output / path.name)
