"""Logits of an exported model from other programs: transformers, Meta's llama-models, llama.cpp.

All programs are optional (`pip install 'puna[proof]'`); reading and writing formats needs no external program.

Shapes: T tokens of a piece, V vocabulary.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from puna.pipeline.errors import CheckpointError

# KV cache of llama.cpp in float32 (GGML_TYPE_F32): rounding of the cache is no property of the file.
CACHE = {"type_k": 0, "type_v": 0}

Pieces = Sequence[Sequence[int]]


class Peer(NamedTuple):
    """A program for a format, with the program's Python packages."""

    name: str
    packages: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        return all(find_spec(package) for package in self.packages)


PEERS = {
    "huggingface": Peer("transformers", ("transformers",)),
    "meta": Peer("llama-models", ("llama_models", "fairscale")),
    "gguf": Peer("llama.cpp", ("llama_cpp",)),
}


def peer_logits(kind: str, path: Path, pieces: Pieces, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield logits_TV of every piece from the program for the format `kind`; llama.cpp ignores `dtype`."""
    if kind == "huggingface":
        return _transformers(path, pieces, dtype)
    if kind == "meta":
        return _llama_models(path, pieces, dtype)
    return _llama_cpp(path, pieces)


def _transformers(path: Path, pieces: Pieces, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval()
    except Exception as error:  # huggingface_hub raises classes of its own for a config that transformers refuses
        reason = " ".join(str(error).split())
        raise CheckpointError(f"transformers cannot read {path}: {reason}", expected="a Llama checkpoint") from None
    for ids in pieces:
        with torch.inference_mode():
            yield model(torch.tensor([ids])).logits[0].float()


def _llama_models(path: Path, pieces: Pieces, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Run reference.py in a child process: llama-models changes torch's default dtype and process groups."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.safetensors"
        request = {"path": str(path), "out": str(out), "pieces": pieces, "dtype": str(dtype).removeprefix("torch.")}
        command = [sys.executable, "-m", "puna.conversion.exchange.reference"]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(f"llama-models cannot read {path}: {last[0]}", expected="Meta's format")
        logits = load_file(out)
    for index in range(len(pieces)):
        yield logits[str(index)]


def _llama_cpp(path: Path, pieces: Pieces) -> Iterator[torch.Tensor]:
    import llama_cpp  # pyright: ignore[reportMissingImports] (compiled while it installs: not among dev)

    longest = max(len(ids) for ids in pieces)
    try:
        model = llama_cpp.Llama(str(path), verbose=False, n_ctx=longest, n_batch=longest, logits_all=True, **CACHE)
    except ValueError as error:
        raise CheckpointError(f"llama.cpp cannot read {path}: {error}", expected="a GGUF file") from None
    for ids in pieces:
        model.reset()
        model.eval(list(ids))
        yield torch.from_numpy(model.scores[: len(ids)].copy())
    model.close()
