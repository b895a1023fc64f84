"""A checkpoint -> the same network with fewer bits a weight, and receipts of how its predictions moved on other text.

Weights are rounded as they are, or by what flows through each layer on calibration text (gptq). What is measured is
what was written: the checkpoint is read back from the disk first. Calibration takes no text that is measured. An int8
cache of keys and values changes no file, it has receipts alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from puna.conversion.compression.calibrate import round_by_calibration
from puna.conversion.compression.cost import estimate_quantizing
from puna.conversion.compression.kv_cache import compare_caches
from puna.conversion.compression.rounding import nearest
from puna.data.pieces import cut_pieces
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.tokenizer import Tokenizer
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
    """How far a quantized model may be from its parent, unless the config says otherwise."""

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
    """Which weights become what, by which method, and what the measurements must show."""

    checkpoint: Path = Field(description="checkpoint with float weights; with scheme 'keep' any")
    data: list[Path] = Field(min_length=1, description="documents and conversations that it was not trained on")
    scheme: Literal["int8", "int4", "fp8", "keep"] = Field(
        default="int8", description="what the layers' matrices become"
    )
    group_size: int | None = Field(
        default=None, ge=8, le=1024, description="weights of a row that share a scale; int8: all, int4: at most 128"
    )
    method: Literal["nearest", "gptq"] = Field(default="nearest", description="round weights alone, or by calibration")
    calibration: list[Path] = Field(default=[], description="documents and conversations that gptq looks at")
    calibration_tokens: int = Field(default=32_768, ge=1, description="tokens to calibrate on, at most")
    vocabulary: Literal["keep", "head", "both"] = Field(
        default="keep", description="what else becomes int8: the output head, or embeddings and head"
    )
    kv_cache: Literal["stored", "int8"] = Field(
        default="stored", description="int8: measure what `serve --kv-cache int8` changes, too"
    )
    tolerance_kl: float | None = Field(default=None, ge=0, description="most mean KL divergence, in nats a token")
    min_agreement: float | None = Field(default=None, ge=0, le=1, description="least share of equal first choices")
    tolerance_perplexity: float | None = Field(default=None, ge=0, description="most share that perplexity may grow by")
    num_tokens: int = Field(default=4096, ge=2, description="tokens to compare")
    context: int = Field(default=1024, ge=2, description="tokens of a text that are read together, at most")
    precision: Precision = Field(default="float32", description="dtype to compare in")

    @model_validator(mode="after")
    def _says_no_more_than_is_used(self) -> "Config":
        if self.scheme == "keep" and self.kv_cache == "stored":
            raise ValueError("kv_cache = 'int8' with scheme 'keep', which changes no weights")
        if self.scheme == "keep" and (self.group_size or self.method == "gptq" or self.vocabulary != "keep"):
            raise ValueError("no group_size, gptq or vocabulary with scheme 'keep', which changes no weights")
        if self.scheme == "fp8" and self.group_size:
            raise ValueError("no group_size with fp8, which has a scale a row")
        if self.scheme == "fp8" and self.method == "gptq":
            raise ValueError("no gptq with fp8, whose steps grow with the values")
        if (self.method == "gptq") != bool(self.calibration):
            raise ValueError("calibration belongs to the method gptq, which needs it")
        if self.method != "gptq" and "calibration_tokens" in self.model_fields_set:
            raise ValueError("no calibration_tokens without gptq")
        if {path.resolve() for path in self.data} & {path.resolve() for path in self.calibration}:
            raise ValueError("data and calibration name the same path: measure on other text than you calibrate on")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `precision` names."""
        return torch_dtype(self.precision)

    def limits(self, usual: Tolerances) -> Tolerances:
        """What the receipts must show: as told, otherwise as usual."""
        told = (self.tolerance_kl, self.min_agreement, self.tolerance_perplexity)
        return Tolerances(*(default if value is None else value for value, default in zip(told, usual, strict=True)))

    def estimate(self, known: Known) -> Estimate:
        """Foresee the calibration and the comparison (compress/cost.py)."""
        return estimate_quantizing(
            known,
            self.checkpoint,
            calibration_tokens=self.calibration_tokens if self.method == "gptq" else 0,
            num_tokens=self.num_tokens * (2 if self.kv_cache == "int8" else 1),
            precision=self.precision,
        )

    def made_of(self) -> dict[str, Path]:
        """Name the inputs whose licences it inherits: `data` is only compared on."""
        return {name: path for name, path in self.inputs().items() if not name.startswith("data")}


def run(config: Config, run: Run) -> None:
    """Write the quantized checkpoint and its receipts; one that does not hold stops the stages after this one."""
    parent = Checkpoint.open(config.checkpoint)
    if parent.is_quantized and config.scheme != "keep":
        hint = 'scheme = "keep" with kv_cache = "int8" measures a cache alone'
        raise ConfigError(f"checkpoint = {config.checkpoint} is quantized", expected="float weights", hint=hint)
    schemes = {} if config.scheme == "keep" else choose_schemes(config, parent.config)
    tokenizer = parent.tokenizer()
    longest = min(config.context, parent.config.max_context)
    pieces = list(cut_pieces(config.data, tokenizer, num_tokens=config.num_tokens, longest=longest))
    model = parent.load()
    texts = _calibration(config, run, tokenizer, pieces, longest=longest) if config.method == "gptq" else []
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
    """Return the scheme of every module that is to be quantized; ConfigError if the sizes don't allow it."""
    shapes = layer_shapes(sizes)
    widths = sorted({in_dim for _, in_dim in shapes.values()})
    if config.scheme == "fp8":
        # The first and the last layer stay as they are, and all attention: what FP8 harms most (arXiv 2407.21783, 6.2).
        scheme, layers = FP8, range(1, sizes.num_layers - 1)
        parts = [part for part in shapes if part.startswith("mlp.")]
        if not layers:
            raise ConfigError(f"fp8 for {sizes.num_layers} layers", expected="3 or more: the first and last stay as is")
    else:
        group_size = config.group_size or (common_group_size(widths) if config.scheme == "int4" else None)
        scheme = Scheme("int", 4 if config.scheme == "int4" else 8, group_size)
        parts, layers = list(shapes), range(sizes.num_layers)
        if not all(map(scheme.fits, widths)) or (config.scheme == "int4" and group_size is None):
            raise ConfigError(
                f"group_size = {group_size} for rows of {', '.join(map(str, widths))} weights",
                expected="a number that divides them all",
            )
    schemes = {f"layers.{layer}.{part}": scheme for layer in layers for part in parts}
    if config.vocabulary != "keep":
        schemes["lm_head"] = INT8
    if config.vocabulary == "both":
        schemes["embed_tokens"] = INT8
        if sizes.tie_embeddings:
            del schemes["lm_head"]
    return schemes


def _calibration(config: Config, run: Run, tokenizer: Tokenizer, compared: Pieces, *, longest: int) -> Pieces:
    """Return the texts to calibrate on: what is compared on as well is left out."""
    known = set(map(tuple, compared))
    texts = list(cut_pieces(config.calibration, tokenizer, num_tokens=config.calibration_tokens, longest=longest))
    left = [ids for ids in texts if tuple(ids) not in known]
    if len(left) < len(texts):
        run.log(f"{len(texts) - len(left):,} of {len(texts):,} calibration texts are also compared on: left out")
    if not left:
        raise ConfigError("every calibration text is also in data", expected="text of its own to calibrate on")
    run.log(f"calibrating on {sum(map(len, left)):,} tokens of {len(left):,} texts")
    return left


def _round(config: Config, run: Run, model: Llama, schemes: dict[str, Scheme], texts: Pieces) -> None:
    with run.progress(len(schemes), f"rounding to {config.scheme}", unit="matrices") as bar:
        if texts:
            round_by_calibration(model, texts, schemes, config.dtype, bar)
        _round_others(model, schemes, bar)
    if "embed_tokens" in schemes and len(set(schemes.values())) > 1:
        run.log('int8 embeddings beside another scheme: transformers cannot load this; vocabulary = "head" it can')
    elif note := _loading_note(schemes):
        run.log(note)


def _round_others(model: Llama, schemes: dict[str, Scheme], bar: Progress) -> None:
    """Round what calibration left: without it all, otherwise what lies outside the layers."""
    if "lm_head" in schemes and model.config.tie_embeddings:
        # NOTE: a head of its own, which other programs load; int8 embeddings they share only with difficulty.
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
    """Return what other programs must know to load weights of several widths; nothing for those of one."""
    if len({(scheme.kind, scheme.bits) for scheme in schemes.values()}) < 2:
        return ""
    return f"{describe_schemes(schemes)}: transformers loads this as it is and refuses it with dequantize=True"


def _prove_weights(config: Config, run: Run, pieces: Pieces, schemes: dict[str, Scheme]) -> None:
    """Compare what was written with its parent."""
    before, after = _num_bytes(config.checkpoint), _num_bytes(run.output)
    run.log(f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB in {describe_schemes(schemes)}")
    models = {path: Checkpoint.open(path).load(config.dtype) for path in (config.checkpoint, run.output)}
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
    """Compare what was written, keeping keys and values as int8, with itself keeping them as usual."""
    run.log("keys and values in int8:")
    model, num_tokens = Checkpoint.open(run.output).load(config.dtype), sum(map(len, pieces))
    with run.progress(num_tokens, "comparing caches", unit="tokens") as bar:
        comparison = compare_caches(model, config.checkpoint, pieces, config.dtype, bar)
    details = {"num_tokens": num_tokens, "precision": config.precision}
    limits = config.limits(CACHE_TOLERANCES)
    _write_receipts(run, comparison, "itself with the usual cache", limits, details, prefix="int8_cache_")


def _write_receipts(
    run: Run, comparison: Comparison, parent: str, limits: Tolerances, details: dict[str, Any], *, prefix: str = ""
) -> None:
    kl = comparison.kl()
    run.log(f"KL divergence a token: mean {kl['mean']:.2g}, 99th percentile {kl['p99']:.2g}, most {kl['max']:.2g}")
    run.log(f"same first choice: {comparison.agreement():.2%} of the tokens")
    told = {"details": details, "prefix": prefix}
    receipts = [
        *comparison.receipts(parent, tolerance_kl=limits.kl, min_agreement=limits.agreement, **told),
        comparison.perplexity_receipt(parent, tolerance=limits.perplexity, **told),
    ]
    run.log("perplexity: {before:.4g} -> {after:.4g}".format(**receipts[-1].details))
    for receipt in receipts:
        receipt.save(run.output)
        if not receipt.held:
            run.log(
                f"{receipt.claim} does not hold: {receipt.value:.4g}, expected {receipt.limit}; "
                "stages that read this stop"
            )


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
