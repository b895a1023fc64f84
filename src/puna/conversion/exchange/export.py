"""A checkpoint -> the format of another program, with receipts of what that program itself computes from it.

Two things are measured: whether the other project's own code computes what Puna computes from the same files, and how
far the files have moved from the checkpoint. Tensors are written one at a time; licences go along.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from puna.conversion.exchange.fidelity import peer_receipts, peer_tolerance, reread_receipt
from puna.conversion.exchange.licences import carry_licences, watched
from puna.conversion.exchange.peers import PEERS, Pieces, peer_logits
from puna.data.pieces import cut_pieces, probe_pieces
from puna.formats.chat.template import PLAIN_TEMPLATE
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.formats.checkpoint.gguf.modelfile import STOP_TEXTS, write_modelfile
from puna.formats.checkpoint.gguf.writer import WrittenKind, write_gguf
from puna.formats.checkpoint.hf.weights import load_source
from puna.formats.checkpoint.meta.writer import write_meta
from puna.formats.checkpoint.source import Source
from puna.formats.tokenizer import Tokenizer
from puna.model.compare import Comparison, logits_of
from puna.pipeline.artifacts import licence
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.config import FlagNumber, StageConfig
from puna.pipeline.errors import CheckpointError, ConfigError
from puna.pipeline.run import Run

GGUF_NAME = "model.gguf"


class Config(StageConfig):
    """Which format, and what the measurements must show."""

    checkpoint: Path = Field(description="the model to export")
    format: Literal["huggingface", "meta", "gguf", "ollama"] = Field(description="what to write")
    kind: WrittenKind = Field(default="Q8_0", description="how GGUF and Ollama store matrices")
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = Field(
        default="stored", description="dtype of Hugging Face's and Meta's files"
    )
    num_shards: Annotated[Literal[1, 2, 4, 8, 16], FlagNumber] = Field(
        default=1, description="Meta's tensor-parallel files"
    )
    environment: Literal["", "ipython"] = Field(default="", description="what Ollama's template sets for tool calls")
    data: list[Path] = Field(default=[], description="text to compare on; without it a sentence in each language")
    num_tokens: int = Field(default=512, ge=1, description="tokens to compare, at most")
    context: int = Field(default=256, ge=2, description="tokens that are read together, at most")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype that Puna compares in")
    tolerance_kl: float = Field(default=0.1, ge=0, description="most mean KL divergence from the checkpoint, in nats")
    min_agreement: float = Field(default=0.8, ge=0, le=1, description="least share of equal first choices with it")
    require_peer: bool = Field(default=False, description="fail where the other program is not installed")

    @model_validator(mode="after")
    def _says_no_more_than_is_used(self) -> "Config":
        is_gguf = self.format in ("gguf", "ollama")
        unused = {"kind": not is_gguf, "dtype": is_gguf, "num_shards": self.format != "meta"}
        unused["environment"] = self.format != "ollama"
        for name, is_unused in unused.items():
            if is_unused and name in self.model_fields_set:
                raise ValueError(f"no {name} with the format {self.format}")
        return self

    def made_of(self) -> dict[str, Path]:
        """Name the inputs whose licences it inherits: the texts are only compared on."""
        return {"checkpoint": self.checkpoint}

    @property
    def peer(self) -> str:
        """The key in PEERS of the program that reads this format."""
        return "gguf" if self.format == "ollama" else self.format


def run(config: Config, run: Run) -> None:
    """Write the files, then read them back with Puna and with the other project's code, and keep what was measured."""
    peer = PEERS[config.peer]
    if config.require_peer and not peer.is_installed:
        raise ConfigError(f"{peer.name} is not installed", hint="pip install 'puna[proof]', or leave out require_peer")
    source = Checkpoint.open(config.checkpoint).source()
    carry_licences(config.checkpoint, run.output)
    with run.progress(source.config.num_parameters // 10**6, "writing", unit="M weights") as bar:
        path = _write(config, watched(source, bar), run)
    assert source.tokenizer
    pieces = list(_pieces(config, source.tokenizer, source.config.max_context))
    run.log(f"{_num_bytes(run.output) / 1e6:,.1f} MB written; comparing on {sum(map(len, pieces)):,} tokens")
    dtype = getattr(torch, config.precision)
    written = open_source(path).source
    _save(run, reread_receipt(config.checkpoint.name, source, written))
    ours = _logits(written, pieces, path, dtype)
    _keep(run, _compare(_logits(source, pieces, config.checkpoint, dtype), ours), config)
    if peer.is_installed:
        _prove(run, _compare(ours, peer_logits(config.peer, path, pieces, dtype)), config)
    else:
        run.log(
            f"{peer.name} is not installed: only Puna has read these files. pip install 'puna[proof]' to prove them"
        )


def _write(config: Config, source: Source, run: Run) -> Path:
    """Write the format's files and return what a program is given: the directory, or the GGUF file."""
    dtype = source.dtype if config.dtype == "stored" else getattr(torch, config.dtype)
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
        stops = [*STOP_TEXTS, *(source.tokenizer.decode([each]) for each in source.other_stop_ids)]
        told = {"sampling": source.sampling or {}, "environment": config.environment, "licence": texts}
        write_modelfile(run.output, GGUF_NAME, stops=stops, **told)
    return path


def _pieces(config: Config, tokenizer: Tokenizer, max_context: int) -> Iterator[list[int]]:
    longest = min(config.context, max_context)
    if config.data:
        yield from cut_pieces(config.data, tokenizer, num_tokens=config.num_tokens, longest=longest)
        return
    yield from probe_pieces(tokenizer, longest=longest)


def _logits(source: Source, pieces: Pieces, path: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    model = load_source(source, dtype)
    return [logits_of(model, ids, path) for ids in pieces]


def _compare(parent: list[torch.Tensor], other: "Iterator[torch.Tensor] | list[torch.Tensor]") -> Comparison:
    comparison = Comparison()
    for parent_TV, other_TV in zip(parent, other, strict=True):
        if parent_TV.shape != other_TV.shape or not other_TV.isfinite().all():
            raise CheckpointError(
                f"logits of shape {list(other_TV.shape)}", expected=f"{list(parent_TV.shape)}, finite"
            )
        comparison.add(parent_TV, other_TV)
    return comparison


def _keep(run: Run, comparison: Comparison, config: Config) -> None:
    """Say how far the written model is from the checkpoint."""
    name, least = config.checkpoint.name, config.min_agreement
    for receipt in comparison.receipts(name, tolerance_kl=config.tolerance_kl, min_agreement=least):
        _save(run, receipt)


def _prove(run: Run, comparison: Comparison, config: Config) -> None:
    """Say how far the other program is from us on the same files."""
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
