"""A checkpoint -> the same network with quantized weights, and receipts of the change in predictions on held-out text.

Weights are rounded to the nearest value, or by GPTQ with calibration text. Receipts measure the written checkpoint,
read back from disk. An int8 KV cache changes no file; `kv_cache = "int8"` adds receipts of the cache alone.

Example:
    [quantize]
    checkpoint = "build/student"
    data = ["held-out"]
    scheme = "int4"
    method = "gptq"
    calibration = ["corpus"]
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from puna.conversion.compression.calibrate import round_by_calibration
from puna.conversion.compression.calibration_texts import calibration_texts
from puna.conversion.compression.cost import estimate_quantizing
from puna.conversion.compression.kv_cache import compare_caches
from puna.conversion.compression.rounding import nearest
from puna.conversion.compression.settings import require_separate_texts
from puna.data.pieces import cut_pieces
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.model.compare import Comparison, logits_of
from puna.model.config import LlamaConfig, layer_shapes, matrix_shapes
from puna.model.llama import Embedding, Linear, Llama
from puna.model.precision import torch_dtype
from puna.model.quantization.quantized import QuantizedLinear, round_weight, rounded
from puna.model.quantization.scheme import FP8, INT8, Scheme, common_group_size, describe_schemes
from puna.pipeline.config import Precision, StageConfig
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.progress import Progress
from puna.pipeline.run import Run

Pieces = list[list[int]]


class Tolerances(NamedTuple):
    """Default limits of the receipts: mean KL divergence, top-1 agreement and relative growth of perplexity."""

    kl: float
    agreement: float
    perplexity: float


TOLERANCES = {
    "int8": Tolerances(kl=0.02, agreement=0.95, perplexity=0.02),
    "fp8": Tolerances(kl=0.05, agreement=0.93, perplexity=0.05),
    "int4": Tolerances(kl=0.1, agreement=0.85, perplexity=0.1),
}
CACHE_TOLERANCES = Tolerances(kl=0.01, agreement=0.97, perplexity=0.01)


class Config(StageConfig):
    """Settings of `puna quantize`: weight formats, rounding method, limits of the receipts."""

    checkpoint: Path = Field(
        description="Checkpoint to quantize, with float weights; scheme keep takes quantized weights too"
    )
    data: list[Path] = Field(min_length=1, description="Held-out documents and conversations for the receipts")
    scheme: Literal["int8", "int4", "fp8", "keep"] = Field(
        default="int8", description="Weight format of the matrices in the layers; keep changes no weights"
    )
    group_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="Number of weights that share a scale; default: the whole row (int8), up to 128 (int4)",
    )
    method: Literal["nearest", "gptq"] = Field(
        default="nearest", description="Rounding to the nearest value, or GPTQ on calibration text"
    )
    calibration: list[Path] = Field(default=[], description="Documents and conversations for GPTQ calibration")
    calibration_tokens: int = Field(default=32_768, ge=1, description="Maximum number of calibration tokens for GPTQ")
    vocabulary: Literal["keep", "head", "both"] = Field(
        default="keep", description="Tables to quantize to int8 as well: the output head, or embeddings and head (both)"
    )
    kv_cache: Literal["stored", "int8"] = Field(
        default="stored", description="KV cache format to measure: int8 adds receipts for `puna serve --kv-cache int8`"
    )
    tolerance_kl: float | None = Field(
        default=None, ge=0, description="Largest allowed mean KL(parent, quantized), in nats per token"
    )
    min_agreement: float | None = Field(
        default=None, ge=0, le=1, description="Smallest allowed share of tokens with an equal top-1 prediction"
    )
    tolerance_perplexity: float | None = Field(
        default=None, ge=0, description="Largest allowed relative growth of perplexity: 0.1 is 10%"
    )
    num_tokens: int = Field(default=4096, ge=2, description="Number of held-out tokens to compare")
    max_length: int = Field(
        default=1024,
        ge=2,
        serialization_alias="context",
        description="Maximum length of a text in tokens; longer texts are cut",
    )
    precision: Precision = Field(
        default="float32", description="Dtype of activations during calibration and comparison"
    )

    @model_validator(mode="after")
    def _has_no_unused_setting(self) -> "Config":
        if self.scheme == "keep" and self.kv_cache == "stored":
            raise ValueError("kv_cache = 'int8' with scheme 'keep', which changes no weights")
        if self.scheme == "keep" and (self.group_size or self.method == "gptq" or self.vocabulary != "keep"):
            raise ValueError("no group_size, gptq or vocabulary with scheme 'keep', which changes no weights")
        if self.scheme == "fp8" and self.group_size:
            raise ValueError("no group_size with fp8, which has a scale a row")
        if self.scheme == "fp8" and self.method == "gptq":
            raise ValueError("no gptq with fp8, whose steps grow with the values")
        if (self.method == "gptq") != bool(self.calibration):
            raise ValueError("method 'gptq' and calibration go together: give both, or neither")
        if self.method != "gptq" and "calibration_tokens" in self.model_fields_set:
            raise ValueError("no calibration_tokens without gptq")
        require_separate_texts(self.data, self.calibration)
        return self

    def limits(self, usual: Tolerances) -> Tolerances:
        """Return the limits of the receipts: settings, and `usual` limits for settings without a value."""
        settings = (self.tolerance_kl, self.min_agreement, self.tolerance_perplexity)
        return Tolerances(
            *(default if value is None else value for value, default in zip(settings, usual, strict=True))
        )

    def estimate(self, known: Known) -> Estimate:
        """Estimate time and memory of calibration and comparison (cost.py)."""
        return estimate_quantizing(
            known,
            self.checkpoint,
            calibration_tokens=self.calibration_tokens if self.method == "gptq" else 0,
            num_tokens=self.num_tokens * (2 if self.kv_cache == "int8" else 1),
            precision=self.precision,
        )

    def made_of(self) -> dict[str, Path]:
        """Name the inputs with licences that the quantized model inherits: all but the held-out `data`."""
        return {name: path for name, path in self.inputs().items() if not name.startswith("data")}


def run(config: Config, run: Run) -> None:
    """Write the quantized checkpoint and the receipts; a failed receipt stops later stages."""
    parent = Checkpoint.open(config.checkpoint)
    if parent.is_quantized and config.scheme != "keep":
        hint = 'scheme = "keep" with kv_cache = "int8" measures the KV cache alone'
        raise ConfigError(f"checkpoint = {config.checkpoint} is quantized", expected="float weights", hint=hint)
    schemes = {} if config.scheme == "keep" else choose_schemes(config, parent.config)
    tokenizer = parent.tokenizer()
    max_length = min(config.max_length, parent.config.max_context)
    pieces = list(cut_pieces(config.data, tokenizer, num_tokens=config.num_tokens, longest=max_length))
    model = parent.load()
    texts: Pieces = []
    if config.method == "gptq":
        limits = {"num_tokens": config.calibration_tokens, "max_length": max_length}
        examples = calibration_texts(config.calibration, tokenizer, run, held_out=pieces, **limits)
        texts = [list(example.ids) for example in examples]
    if schemes:
        _round(config, run, model, schemes, texts)
    save_checkpoint(run.output, model, tokenizer, like=parent.source())
    del model
    run.log(f"comparing on {sum(map(len, pieces)):,} tokens of held-out text")
    if schemes:
        _prove_weights(config, run, pieces, schemes)
    if config.kv_cache == "int8":
        _prove_cache(config, run, pieces)


def choose_schemes(config: Config, sizes: LlamaConfig) -> dict[str, Scheme]:
    """Return the scheme of every module to quantize: {"layers.0.mlp.up_proj": INT8}.

    Raises:
        ConfigError: `group_size` does not divide every row, or an fp8 model has no inner layers.
    """
    shapes = layer_shapes(sizes)
    widths = sorted({in_dim for _, in_dim in shapes.values()})
    if config.scheme == "fp8":
        # Attention, the first and the last layer stay float: FP8 harms these most (arXiv 2407.21783, section 6.2).
        scheme, layers = FP8, range(1, sizes.num_layers - 1)
        parts = [part for part in shapes if part.startswith("mlp.")]
        if not layers:
            raise ConfigError(
                f"fp8 for {sizes.num_layers} layers",
                expected="3 or more layers: the first and the last layer stay float",
            )
    else:
        group_size = config.group_size or (common_group_size(widths) if config.scheme == "int4" else None)
        scheme = Scheme("int", 4 if config.scheme == "int4" else 8, group_size)
        parts, layers = list(shapes), range(sizes.num_layers)
        if not all(map(scheme.fits, widths)) or (config.scheme == "int4" and group_size is None):
            raise ConfigError(
                f"group_size = {group_size} for rows of {', '.join(map(str, widths))} weights",
                expected="a divisor of every row length",
            )
    schemes = {f"layers.{layer}.{part}": scheme for layer in layers for part in parts}
    if config.vocabulary != "keep":
        schemes["lm_head"] = INT8
    if config.vocabulary == "both":
        schemes["embed_tokens"] = INT8
        if sizes.tie_embeddings:
            del schemes["lm_head"]
    return schemes


def _round(config: Config, run: Run, model: Llama, schemes: dict[str, Scheme], texts: Pieces) -> None:
    with run.progress(len(schemes), f"rounding to {config.scheme}", unit="matrices") as bar:
        if texts:
            round_by_calibration(model, texts, schemes, torch_dtype(config.precision), bar)
        _round_remaining(model, schemes, bar)
    if "embed_tokens" in schemes and len(set(schemes.values())) > 1:
        run.log(
            'transformers cannot load int8 embeddings beside another scheme; use vocabulary = "head" for transformers'
        )
    elif note := _loading_note(schemes):
        run.log(note)


def _round_remaining(model: Llama, schemes: dict[str, Scheme], bar: Progress) -> None:
    """Round the modules of `schemes` that GPTQ has left: everything without GPTQ, else embeddings and head."""
    if "lm_head" in schemes and model.config.tie_embeddings:
        # NOTE: an untied head, since few other programs load tied int8 embeddings.
        model.config = replace(model.config, tie_embeddings=False)
        shape = matrix_shapes(model.config)["lm_head"]
        words_and_scale = round_weight(model.embed_tokens.weight, schemes["lm_head"])
        model.lm_head = QuantizedLinear(*words_and_scale, schemes["lm_head"], shape[1])
        bar.advance()
    for path, scheme in schemes.items():
        module = model.get_submodule(path)
        if isinstance(module, Linear) and scheme.bits == 4:
            model.set_submodule(path, nearest(module.weight, scheme))
        elif isinstance(module, Linear | Embedding):
            model.set_submodule(path, rounded(module, scheme))
        else:
            continue
        bar.advance()


def _loading_note(schemes: dict[str, Scheme]) -> str:
    """Return a note on loading mixed bit widths in transformers; empty for a single bit width."""
    if len({(scheme.kind, scheme.bits) for scheme in schemes.values()}) < 2:
        return ""
    return f"{describe_schemes(schemes)}: transformers loads this checkpoint, but not with dequantize=True"


def _prove_weights(config: Config, run: Run, pieces: Pieces, schemes: dict[str, Scheme]) -> None:
    """Compare the written checkpoint with the parent on held-out text."""
    before, after = _num_bytes(config.checkpoint), _num_bytes(run.output)
    run.log(f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB in {describe_schemes(schemes)}")
    models = {
        path: Checkpoint.open(path).load(torch_dtype(config.precision)) for path in (config.checkpoint, run.output)
    }
    num_tokens, comparison = sum(map(len, pieces)), Comparison()
    with run.progress(num_tokens, "comparing weights", unit="tokens") as bar:
        for ids in pieces:
            comparison.add(*(logits_of(model, ids, path) for path, model in models.items()), ids=ids)
            bar.advance(len(ids))
    details = {"num_tokens": num_tokens, "schemes": describe_schemes(schemes)}
    details |= {"loading": note} if (note := _loading_note(schemes)) else {}
    details |= {"bytes_before": before, "bytes_after": after, "method": config.method}
    _write_receipts(run, comparison, config.checkpoint.name, config.limits(TOLERANCES[config.scheme]), details)


def _prove_cache(config: Config, run: Run, pieces: Pieces) -> None:
    """Compare the written checkpoint with an int8 KV cache and with the usual cache."""
    run.log("int8 KV cache:")
    model, num_tokens = Checkpoint.open(run.output).load(torch_dtype(config.precision)), sum(map(len, pieces))
    with run.progress(num_tokens, "comparing caches", unit="tokens") as bar:
        comparison = compare_caches(model, config.checkpoint, pieces, torch_dtype(config.precision), bar)
    details = {"num_tokens": num_tokens, "precision": config.precision}
    limits = config.limits(CACHE_TOLERANCES)
    _write_receipts(run, comparison, "itself with the usual cache", limits, details, prefix="int8_cache_")


def _write_receipts(
    run: Run, comparison: Comparison, parent: str, limits: Tolerances, details: dict[str, Any], *, prefix: str = ""
) -> None:
    kl = comparison.kl()
    run.log(f"KL divergence per token: mean {kl['mean']:.2g}, 99th percentile {kl['p99']:.2g}, maximum {kl['max']:.2g}")
    run.log(f"top-1 agreement: {comparison.agreement():.2%} of the tokens")
    naming = {"details": details, "prefix": prefix}
    receipts = [
        *comparison.receipts(parent, tolerance_kl=limits.kl, min_agreement=limits.agreement, **naming),
        comparison.perplexity_receipt(parent, tolerance=limits.perplexity, **naming),
    ]
    run.log("perplexity: {before:.4g} -> {after:.4g}".format(**receipts[-1].details))
    for receipt in receipts:
        receipt.save(run.output)
        if not receipt.held:
            run.log(f"{receipt.claim} does not hold: {receipt.value:.4g}, expected {receipt.limit}; later stages stop")


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
