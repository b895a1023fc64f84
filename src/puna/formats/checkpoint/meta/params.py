"""params.json <-> LlamaConfig.

The format has no fields for the context length, the RoPE factor and tied embeddings: `parse_params` derives the values.
Unknown keys are rejected by name, since a key may change the computation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from puna.formats.checkpoint.fields import Fields
from puna.model.config import SIZES, LlamaConfig, published_scaling
from puna.pipeline.errors import CheckpointError, ConfigError

CONTEXT, CONTEXT_SCALED = 8192, 131_072
# Settings of Meta's generator without an effect on weights and results.
IGNORED = {"max_batch_size", "max_seq_len"}
KNOWN = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"}
KNOWN |= {"rope_theta", "use_scaled_rope"} | IGNORED
# (dim, hidden_dim) -> multiple_of and ffn_dim_multiplier in the published files.
PUBLISHED_FFN = {
    (2048, 8192): (256, 1.5),
    (3072, 8192): (256, 1.0),
    (4096, 14_336): (1024, 1.3),
    (8192, 28_672): (4096, 1.3),
    (16_384, 53_248): (4096, 1.2),
}


def parse_params(raw: dict[str, Any], path: Path, *, num_ids: int | None, is_tied: bool) -> LlamaConfig:
    """Return the config.

    `use_scaled_rope` means Llama 3.1's scaling by 8, or by 32 for the sizes of Llama 3.2 1B and 3B.

    Args:
        num_ids: Vocabulary size of the tokenizer, the value of a vocab_size of -1.
        is_tied: Whether head and embeddings share a matrix.
    """
    unknown = sorted(key for key in raw.keys() - KNOWN if raw[key] is not None)
    if unknown:
        raise CheckpointError(
            f"{path}: {unknown[0]!a:.100}",
            expected=f"only {', '.join(sorted(KNOWN - IGNORED))}",
            hint="Quantized, LoRA, vision and mixture-of-experts models of Meta's format are not read",
        )
    fields = Fields(raw, path)
    dim, num_heads = fields.integer("dim"), fields.integer("n_heads")
    multiplier = raw.get("ffn_dim_multiplier")
    hidden_dim = ffn_hidden_dim(
        dim,
        multiplier if multiplier is None else fields.number("ffn_dim_multiplier"),
        fields.integer("multiple_of", 256),
    )
    is_scaled = fields.flag("use_scaled_rope", False)
    if dim % num_heads:
        raise fields.fail("n_heads", f"a divisor of dim = {dim}")
    try:
        config = LlamaConfig(
            dim=dim,
            hidden_dim=hidden_dim,
            head_dim=dim // num_heads,
            num_layers=fields.integer("n_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("n_kv_heads", num_heads),
            vocab_size=_vocab_size(fields, num_ids),
            max_context=CONTEXT_SCALED if is_scaled else CONTEXT,
            norm_eps=fields.number("norm_eps"),
            rope_theta=fields.number("rope_theta"),
            rope_scaling=published_scaling(8.0) if is_scaled else None,
            tie_embeddings=is_tied,
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.given}", expected=error.expected) from error
    return replace(config, rope_scaling=SIZES[size].rope_scaling) if is_scaled and (size := _small(config)) else config


def _small(config: LlamaConfig) -> str | None:
    """Return the model of Llama 3.2 with these sizes."""
    return next((size for size in ("1b", "3b") if _sizes(SIZES[size]) == _sizes(config)), None)


def _sizes(config: LlamaConfig) -> tuple[int, ...]:
    return (config.dim, config.hidden_dim, config.num_layers, config.num_heads, config.num_kv_heads)


def render_params(config: LlamaConfig) -> dict[str, Any]:
    """Return params.json for a config; CheckpointError if Meta's format cannot represent the config."""
    if config.head_dim * config.num_heads != config.dim:
        raise CheckpointError(
            f"head_dim {config.head_dim} with {config.num_heads} heads for dim {config.dim}",
            expected="head_dim = dim / num_heads, the only value that Meta's format can represent",
        )
    multiple_of, multiplier = PUBLISHED_FFN.get((config.dim, config.hidden_dim)) or _solve_ffn(config)
    rendered: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    back = parse_params(rendered, Path("params.json"), num_ids=None, is_tied=config.tie_embeddings)
    if back.rope_scaling != config.rope_scaling:
        raise CheckpointError(
            f"{config.rope_scaling}",
            expected=f"{back.rope_scaling}, the scaling that Meta's format implies for these sizes",
        )
    assert back == replace(config, max_context=back.max_context)
    return rendered


def ffn_hidden_dim(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Return the width of the feed-forward layer with the rounding of Meta's code."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def _solve_ffn(config: LlamaConfig) -> tuple[int, float]:
    """Return a multiple_of and the shortest multiplier for exactly this hidden_dim."""
    multiple_of = min(256, config.hidden_dim & -config.hidden_dim)
    # A quarter more than the width, so that truncation never loses 1.
    ratio = (config.hidden_dim + 0.25) / int(8 * config.dim / 3)
    rounded = (round(ratio, digits) for digits in range(1, 20))
    return multiple_of, next(m for m in rounded if ffn_hidden_dim(config.dim, m, multiple_of) == config.hidden_dim)


def _vocab_size(fields: Fields, num_ids: int | None) -> int:
    if fields.get("vocab_size") != -1:
        return fields.integer("vocab_size")
    if num_ids is None:
        raise fields.fail("vocab_size", "a tokenizer.model in the directory, whose size -1 refers to")
    return num_ids
