"""config.json and generation_config.json <-> LlamaConfig and stop ids.

Reads the spelling of the published Llamas and of transformers 5, and writes the published spelling. Unsupported
settings that would change the logits are rejected; keys without an effect in transformers' LlamaForCausalLM are
ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from puna.formats.checkpoint.compressed.config import render_quantization
from puna.formats.checkpoint.fields import MAX_SIZE, Fields
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import CheckpointError, ConfigError

ARCHITECTURE = "LlamaForCausalLM"
REWARD_ARCHITECTURE = "LlamaForSequenceClassification"

# Supported values of optional settings.
FIXED: dict[str, tuple[Any, ...]] = {
    "architectures": ([ARCHITECTURE], None),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, None),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}

# Sampling defaults of generation_config.json: Meta's, and the keys that Puna preserves.
META_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
SAMPLING_KEYS = {"do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"}


def parse_config(raw: dict[str, Any], path: Path, *, is_reward: bool = False) -> LlamaConfig:
    """Return the config in `raw`, the contents of `path`, with the defaults of transformers.

    Args:
        is_reward: Whether the file must describe a reward model; False rejects reward models.
    """
    fields = Fields(raw, path)
    if names_reward_model(raw) != is_reward:
        raise _other_kind(raw, path, is_reward=is_reward)
    raw = raw | ({"architectures": [ARCHITECTURE]} if is_reward else {})
    refuse_code(raw, path)
    if raw.get("model_type") != "llama":
        raise fields.fail("model_type", '"llama"')
    for key, allowed in FIXED.items():
        if key in raw and not any(raw[key] == value for value in allowed):
            raise fields.fail(key, f"{allowed[0]!r}, the only one Puna computes")
    num_heads = fields.integer("num_attention_heads")
    dim = fields.integer("hidden_size")
    rope_theta, rope_scaling = _parse_rope(fields)
    try:
        return LlamaConfig(
            dim=dim,
            hidden_dim=fields.integer("intermediate_size"),
            head_dim=fields.integer("head_dim", dim // num_heads),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            vocab_size=fields.integer("vocab_size"),
            max_context=fields.integer("max_position_embeddings", 2048),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_embeddings=is_reward or fields.flag("tie_word_embeddings", False),
            is_reward=is_reward,
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.given}", expected=error.expected) from error


def names_reward_model(raw: dict[str, Any]) -> bool:
    """Return whether a config describes a reward model.

    Example:
        >>> names_reward_model({"architectures": ["LlamaForCausalLM"]})
        False
    """
    return raw.get("architectures") == [REWARD_ARCHITECTURE]


def _other_kind(raw: dict[str, Any], path: Path, *, is_reward: bool) -> CheckpointError:
    if is_reward:
        hint = "`puna reward` trains a reward model"
        return CheckpointError(
            f"{path}: architectures = {raw.get('architectures')!r}", expected=f"{[REWARD_ARCHITECTURE]}", hint=hint
        )
    hint = "`puna answer --judge reward --reward PATH` judges answers with a reward model"
    return CheckpointError(f"{path.parent} is a reward model", expected="a language model", hint=hint)


def refuse_code(raw: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError if the file refers to Python code in the model directory."""
    if raw.get("auto_map"):
        raise CheckpointError(
            f"{path}: auto_map names code in the model directory",
            expected="a plain Llama",
            hint="Puna never runs code from a model directory; remove auto_map if the model doesn't need it",
        )


def _parse_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Return rope_theta and the scaling, from the top level or from `rope_parameters` (transformers 5)."""
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    if old and new and old.raw != new.raw:
        raise fields.fail("rope_parameters", "the same as rope_scaling, or only one of them")
    rope = new or old or Fields({}, fields.path)
    rope_theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    kinds = {rope.raw[key] for key in ("rope_type", "type") if isinstance(rope.raw.get(key), str)} or {"default"}
    if rope.raw.get("partial_rotary_factor") not in (None, 1):
        raise rope.fail("partial_rotary_factor", "1")
    if kinds == {"default"}:
        return rope_theta, None
    if kinds != {"llama3"}:
        raise rope.fail("rope_type" if "rope_type" in rope.raw else "type", '"llama3" or "default"')
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_context=rope.integer("original_max_position_embeddings"),
    )
    return rope_theta, scaling


def parse_stop_ids(raw: dict[str, Any], path: Path) -> tuple[int, ...]:
    """Return eos_token_id of config.json or generation_config.json: one id, several or none."""
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token_id) is not int or not 0 <= token_id <= MAX_SIZE for token_id in ids):
        raise Fields(raw, path).fail("eos_token_id", "a token id or a list of them")
    return tuple(ids)


def parse_sampling(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the sampling defaults of generation_config.json; null values count as absent."""
    stated = {key: raw[key] for key in sorted(SAMPLING_KEYS & raw.keys()) if raw[key] is not None}
    for key, value in stated.items():
        if not isinstance(value, int | float):
            raise Fields(raw, path).fail(key, "a number, true or false")
    return stated


def render_config(
    config: LlamaConfig,
    *,
    dtype: torch.dtype,
    stop_ids: tuple[int, ...],
    bos_id: int,
    pad_id: int,
    schemes: Mapping[str, Scheme] | None = None,
) -> dict[str, Any]:
    """Return config.json in the spelling of the published Llamas; `schemes` are quantization schemes by module path."""
    rendered: dict[str, Any] = {
        "architectures": [REWARD_ARCHITECTURE if config.is_reward else ARCHITECTURE],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_id,
        "eos_token_id": list(stop_ids),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": pad_id,
        "pretraining_tp": 1,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": _render_scaling(config.rope_scaling),
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.is_reward:
        rendered |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return rendered | ({"quantization_config": render_quantization(schemes, config)} if schemes else {})


def _render_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "factor": scaling.factor,
        "high_freq_factor": scaling.high_freq_factor,
        "low_freq_factor": scaling.low_freq_factor,
        "original_max_position_embeddings": scaling.original_max_context,
        "rope_type": "llama3",
    }


def render_generation_config(
    *, stop_ids: tuple[int, ...], bos_id: int, pad_id: int, sampling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return generation_config.json with sampling defaults; None uses Meta's defaults."""
    ids = {"bos_token_id": bos_id, "eos_token_id": list(stop_ids), "pad_token_id": pad_id}
    return dict(sorted({**ids, **(META_SAMPLING if sampling is None else sampling)}.items()))
