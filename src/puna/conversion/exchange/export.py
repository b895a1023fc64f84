"""A checkpoint -> files for an external program, with receipts of fidelity.

Receipts compare predictions twice: the written files with the checkpoint, both in Puna, and Puna with the external
program on the written files. Tensors are written on demand, and licence files are copied.

Example:
    [export]
    checkpoint = "build/student"
    format = "gguf"
    kind = "Q8_0"
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from puna.conversion.exchange.fidelity import peer_receipts, peer_tolerance, reread_receipt
from puna.conversion.exchange.licences import copy_licences, counted
from puna.conversion.exchange.peers import PEERS, Pieces, peer_logits
from puna.data.pieces import held_out_pieces
from puna.formats.chat.template import PLAIN_TEMPLATE
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.formats.checkpoint.gguf.modelfile import STOP_TEXTS, write_modelfile
from puna.formats.checkpoint.gguf.writer import WrittenKind, write_gguf
from puna.formats.checkpoint.hf.weights import load_source
from puna.formats.checkpoint.meta.writer import write_meta
from puna.formats.checkpoint.source import Source
from puna.model.compare import Comparison, logits_of
from puna.model.precision import torch_dtype
from puna.pipeline.artifacts import licence
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.config import FlagNumber, Precision, StageConfig, StoredDtype
from puna.pipeline.errors import CheckpointError, ConfigError
from puna.pipeline.run import Run

GGUF_NAME = "model.gguf"


class Config(StageConfig):
    """Settings of `puna export`: the format, storage types and limits of the receipts."""

    checkpoint: Path = Field(description="Checkpoint directory to export")
    format: Literal["huggingface", "meta", "gguf", "ollama"] = Field(description="Format of the written files")
    kind: WrittenKind = Field(default="Q8_0", description="GGUF storage type of matrices, for gguf and ollama")
    dtype: StoredDtype = Field(
        default="stored", description="Dtype of weights in Hugging Face's and Meta's formats; stored keeps the dtype"
    )
    num_shards: Annotated[Literal[1, 2, 4, 8, 16], FlagNumber] = Field(
        default=1, description="Number of tensor-parallel files in Meta's format"
    )
    environment: Literal["", "ipython"] = Field(
        default="", description="Environment line of Ollama's template; ipython enables built-in tool calls"
    )
    data: list[Path] = Field(
        default=[], description="Held-out text for the receipts; default: a sentence in each language of Llama 3.1"
    )
    num_tokens: int = Field(default=512, ge=1, description="Maximum number of tokens to compare")
    max_length: int = Field(
        default=256,
        ge=2,
        serialization_alias="context",
        description="Maximum length of a text in tokens; longer texts are cut",
    )
    precision: Precision = Field(default="float32", description="Dtype of Puna's activations during the comparison")
    tolerance_kl: float = Field(
        default=0.1, ge=0, description="Largest allowed mean KL(checkpoint, written files), in nats per token"
    )
    min_agreement: float = Field(
        default=0.8, ge=0, le=1, description="Smallest allowed share of tokens with the checkpoint's top-1 prediction"
    )
    require_peer: bool = Field(
        default=False, description="Fail without the other program, instead of skipping its receipts"
    )

    @model_validator(mode="after")
    def _has_no_unused_setting(self) -> "Config":
        is_gguf = self.format in ("gguf", "ollama")
        unused = {"kind": not is_gguf, "dtype": is_gguf, "num_shards": self.format != "meta"}
        unused["environment"] = self.format != "ollama"
        for name, is_unused in unused.items():
            if is_unused and name in self.model_fields_set:
                raise ValueError(f"no {name} with the format {self.format}")
        return self

    def made_of(self) -> dict[str, Path]:
        """Name the input with licences for the export to inherit: the checkpoint, not the held-out text."""
        return {"checkpoint": self.checkpoint}

    @property
    def peer(self) -> str:
        """Key in PEERS of the external program for the format."""
        return "gguf" if self.format == "ollama" else self.format


def run(config: Config, run: Run) -> None:
    """Write the files, compare the written files in Puna and in the external program, and write receipts."""
    peer = PEERS[config.peer]
    if config.require_peer and not peer.is_installed:
        raise ConfigError(f"{peer.name} is not installed", hint="pip install 'puna[proof]', or leave out require_peer")
    source = Checkpoint.open(config.checkpoint).source()
    copy_licences(config.checkpoint, run.output)
    with run.progress(source.config.num_parameters // 10**6, "writing", unit="M weights") as bar:
        path = _write(config, counted(source, bar), run)
    assert source.tokenizer
    longest = min(config.max_length, source.config.max_context)
    pieces = list(held_out_pieces(config.data, source.tokenizer, num_tokens=config.num_tokens, longest=longest))
    run.log(f"{_num_bytes(run.output) / 1e6:,.1f} MB written; comparing on {sum(map(len, pieces)):,} tokens")
    dtype = torch_dtype(config.precision)
    written = open_source(path).source
    _save(run, reread_receipt(config.checkpoint.name, source, written))
    ours = _logits(written, pieces, path, dtype)
    _write_receipts(run, _compare(_logits(source, pieces, config.checkpoint, dtype), ours), config)
    if peer.is_installed:
        _write_peer_receipts(run, _compare(ours, peer_logits(config.peer, path, pieces, dtype)), config)
    else:
        run.log(
            f"{peer.name} is not installed, so only Puna has read these files: pip install 'puna[proof]' compares both"
        )


def _write(config: Config, source: Source, run: Run) -> Path:
    """Write the files and return the path for external programs: the directory, or the GGUF file."""
    dtype = source.dtype if config.dtype == "stored" else torch_dtype(config.dtype)
    if config.format == "huggingface":
        write_checkpoint(run.output, source, dtype=dtype)
        return run.output
    if config.format == "meta":
        write_meta(run.output, source, num_shards=config.num_shards, dtype=dtype)
        return run.output
    path = run.output / GGUF_NAME
    name = config.checkpoint.resolve().name
    terms = ", ".join(sorted(licences_of(config.checkpoint) & licence.LICENCES.keys() - {licence.OWN}))
    others = write_gguf(path, source, kind=config.kind, name=name, template=PLAIN_TEMPLATE, licence=terms)
    if others:
        kinds = ", ".join(sorted(set(others.values())))
        run.log(f"{len(others)} matrices are stored as {kinds}, not {config.kind}: {', '.join(sorted(others)[:3])} ...")
    if config.format == "ollama":
        texts = "\n\n".join(file.read_text(encoding="utf-8") for file, _ in licence.read_texts(run.output))
        assert source.tokenizer
        stops = [*STOP_TEXTS, *(source.tokenizer.decode([stop_id]) for stop_id in source.other_stop_ids)]
        options = {"sampling": source.sampling or {}, "environment": config.environment, "licence": texts}
        write_modelfile(run.output, GGUF_NAME, stops=stops, **options)
    return path


def _logits(source: Source, pieces: Pieces, path: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    model = load_source(source, dtype)
    return [logits_of(model, ids, path) for ids in pieces]


def _compare(parent: list[torch.Tensor], other: "Iterator[torch.Tensor] | list[torch.Tensor]") -> Comparison:
    comparison = Comparison()
    for parent_TV, other_TV in zip(parent, other, strict=True):
        if parent_TV.shape != other_TV.shape or not other_TV.isfinite().all():
            raise CheckpointError(
                f"logits of shape {list(other_TV.shape)}", expected=f"finite logits of shape {list(parent_TV.shape)}"
            )
        comparison.add(parent_TV, other_TV)
    return comparison


def _write_receipts(run: Run, comparison: Comparison, config: Config) -> None:
    """Write the receipts of the written files against the checkpoint."""
    name, min_agreement = config.checkpoint.name, config.min_agreement
    for receipt in comparison.receipts(name, tolerance_kl=config.tolerance_kl, min_agreement=min_agreement):
        _save(run, receipt)


def _write_peer_receipts(run: Run, comparison: Comparison, config: Config) -> None:
    """Write the receipts of the external program against Puna on the same files."""
    kind = config.kind if config.peer == "gguf" else None
    name, tolerance = PEERS[config.peer].name, peer_tolerance(config.precision, kind)
    details = {"read_by": name, "precision": kind or config.precision}
    for receipt in peer_receipts(comparison, name, tolerance, details):
        _save(run, receipt)


def _save(run: Run, receipt: Receipt) -> None:
    receipt.save(run.output)
    verdict = "holds" if receipt.held else "does not hold"
    run.log(f"{receipt.claim} ({receipt.parent}): {receipt.value:.4g}, expected {receipt.limit}: {verdict}")


def _num_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
