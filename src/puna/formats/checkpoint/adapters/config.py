"""adapter_config.json -> AdapterConfig: PEFT's settings that decide an adapter's logits, and the problems in the file.

Fields that change training alone are ignored, as in PEFT's own loading. A field that would change the result and is not
computed here is a Problem. Merging, serving, training and doctor report the same problems.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from puna.formats.checkpoint.hf.config import refuse_code
from puna.formats.checkpoint.safe_files import read_json
from puna.pipeline.errors import CheckpointError

LORA, TOKENS_ONLY = "LORA", "TRAINABLE_TOKENS"
MAX_RANK = 2**16
MERGE_IN_PEFT = (
    "In PEFT, `PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(OUT)` writes a checkpoint, "
    "which Puna reads"
)
VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
# Initializations that leave the base as it is. The others (pissa, olora, loftq, corda, lora_ga) change its weights.
INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
INITIALIZED_HINT = (
    "The base was changed before training. In PEFT, save_pretrained with path_initial_model_for_weight_conversion "
    "writes an ordinary adapter for the unchanged base"
)
# Fields that change what is computed, in ways that Puna does not compute: each must be absent, null, false or empty.
UNCOMPUTED = {
    "lora_bias": "A Llama's linear layers have no bias for it to be merged into: train with lora_bias = False",
    "use_qalora": MERGE_IN_PEFT,
    "target_parameters": MERGE_IN_PEFT,
    "layer_replication": MERGE_IN_PEFT,
    "megatron_config": "Export the adapter from Megatron to PEFT's layout",
    "use_bdlora": MERGE_IN_PEFT,
    "arrow_config": "Merge one of the adapters that the router chooses from",
    "kasa_config": MERGE_IN_PEFT,
    "monteclora_config": MERGE_IN_PEFT,
    "alora_invocation_tokens": "An activated LoRA is on for a part of the prompt only: no merged weights compute that",
}
# Fields that are read below, or that change how an adapter is trained and nothing of what it computes.
KNOWN = {
    "peft_type", "task_type", "auto_mapping", "auto_map", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias",
    "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "megatron_core", "trainable_token_indices", "token_indices", "init_weights", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "use_dora", "velora_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", *UNCOMPUTED,
}  # fmt: skip
MLX_FIELDS = ("fine_tune_type", "lora_parameters", "adapter_path")
TORCHTUNE_FIELDS = ("adapter_type", "lora_attn_modules", "apply_lora_to_mlp")


class Problem(NamedTuple):
    """An unsupported setting: field, value, expectation and remedy. Example: see `problems`."""

    field: str
    given: str
    expected: str
    hint: str = ""


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter, with the names of PEFT's LoraConfig if the words differ. Example: see `parse_config`.

    Attributes:
        base_name: `base_model_name_or_path`, with the revision if stated; "" if unknown.
        rank: `r` of the modules outside `rank_pattern`.
        targets: `target_modules`: endings of module paths, a regular expression, or "all-linear"; None for the modules
            with
            stored matrices.
        excluded: `exclude_modules`: names, or a regular expression.
        saved: `modules_to_save`: modules with a trained copy, stored whole.
        layers: `layers_to_transform`; None for all layers.
        token_rows: `trainable_token_indices`: rows of a table by the module's name.
        is_tied: `ensure_weight_tying`: changes of the embeddings of a tied base are changes of the head, too.
        notes: descriptions of unknown fields of the file.
    """

    base_name: str
    rank: int
    alpha: float
    targets: str | tuple[str, ...] | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    excluded: str | tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    token_rows: Mapping[str, tuple[int, ...]] | None = None
    is_rank_stabilized: bool = False
    has_magnitudes: bool = False
    is_tied: bool = False
    is_lora: bool = True
    notes: tuple[str, ...] = ()


def read_config(path: Path) -> AdapterConfig:
    """Read adapter_config.json; CheckpointError for the first problem."""
    raw = read_json(path)
    refuse_code(raw, path)
    for problem in problems(raw):
        raise CheckpointError(f"{path}: {problem.given}", expected=problem.expected, hint=problem.hint)
    return parse_config(raw)


def parse_config(raw: Mapping[str, Any]) -> AdapterConfig:
    """Return the settings of a file without problems; defaults are PEFT's.

    Example:
        >>> raw = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "alpha_pattern": None}
        >>> parse_config(raw).alpha
        16.0
    """
    name, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    base_name = name if isinstance(name, str) else ""
    is_lora = raw["peft_type"] == LORA
    layers = raw.get("layers_to_transform")
    indices = raw.get("trainable_token_indices") if is_lora else raw.get("token_indices")
    targets = raw.get("target_modules")
    if not is_lora:
        indices = dict.fromkeys(_names(targets) or ("embed_tokens",), indices or [])
    elif isinstance(indices, list):
        indices = {"embed_tokens": indices}
    unknown = sorted(key for key, value in raw.items() if key not in KNOWN and _says_something(value))
    notes = (
        f"adapter_config.json has fields that Puna does not know and leaves out, as PEFT does: {', '.join(unknown)}",
    )
    return AdapterConfig(
        base_name=f"{base_name} at {revision}" if base_name and isinstance(revision, str) and revision else base_name,
        rank=int(raw["r"]) if is_lora else 0,
        alpha=float(raw["lora_alpha"]) if is_lora else 0.0,
        targets=_target_names(targets),
        rank_pattern=raw.get("rank_pattern") or {},
        alpha_pattern=raw.get("alpha_pattern") or {},
        excluded=_target_names(raw.get("exclude_modules")) or (),
        saved=_names(raw.get("modules_to_save")),
        layers=None if layers in (None, []) else tuple(layers) if isinstance(layers, list) else (layers,),
        layers_pattern=_names(raw.get("layers_pattern")),
        token_rows={key: tuple(rows) for key, rows in indices.items()} if indices else None,
        is_rank_stabilized=bool(raw.get("use_rslora")),
        has_magnitudes=bool(raw.get("use_dora")),
        is_tied=bool(raw.get("ensure_weight_tying")),
        is_lora=is_lora,
        notes=notes if unknown else (),
    )


def problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every unsupported setting of adapter_config.json.

    Example:
        >>> next(iter(problems({"peft_type": "IA3"}))).field
        'peft_type'
    """
    kind = raw.get("peft_type")
    if kind not in (LORA, TOKENS_ONLY):
        yield _foreign_kind(raw)
        return
    if kind == LORA:
        yield from _lora_problems(raw)
    for key, hint in UNCOMPUTED.items():
        if _says_something(raw.get(key)):
            yield Problem(key, f"{key} = {raw[key]!a:.100}", "nothing, or null", hint)
    yield from _shape_problems(raw)


def _foreign_kind(raw: Mapping[str, Any]) -> Problem:
    kind, expected = raw.get("peft_type"), f"{LORA!r}, or {TOKENS_ONLY!r}"
    if kind is None and any(key in raw for key in MLX_FIELDS):
        hint = "mlx_lm.fuse writes a checkpoint of the base and the adapter, which Puna reads"
        return Problem("peft_type", "no peft_type: settings as mlx-lm writes them", "PEFT's settings", hint)
    if kind is None and any(key in raw for key in TORCHTUNE_FIELDS):
        hint = "torchtune's FullModelHFCheckpointer writes PEFT's adapter_config.json and adapter_model.safetensors"
        return Problem("peft_type", "no peft_type: settings as torchtune writes them", "PEFT's settings", hint)
    if kind in VIRTUAL_TOKENS:
        hint = "Such an adapter holds vectors before the prompt and no change of weights: train a LoRA adapter instead"
        return Problem("peft_type", f"peft_type = {kind!r}", expected, hint)
    return Problem("peft_type", f"peft_type = {kind!a:.100}", expected, MERGE_IN_PEFT)


def _lora_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    scale_hint = "Copy adapter_config.json again: alpha / r scales every matrix"
    rank = raw.get("r")
    if type(rank) is not int or not 0 < rank < MAX_RANK:
        yield Problem("r", f"'r' = {rank!a:.60}", "a positive integer", scale_hint)
    if not _is_positive(raw.get("lora_alpha")):
        given = f"'lora_alpha' = {raw.get('lora_alpha')!a:.60}"
        yield Problem("lora_alpha", given, "a positive number", scale_hint)
    for key, kinds, expected in (("rank_pattern", (int,), "ranks"), ("alpha_pattern", (int, float), "numbers")):
        patterns = raw.get(key) or {}
        if not isinstance(patterns, dict):
            yield Problem(key, f"{key} = {patterns!a:.100}", f"an object of module names with {expected}")
            continue
        for name, value in patterns.items():
            if type(value) not in kinds or not _is_positive(value):
                given = f"{key}: {name!a:.100} = {value!a:.60}"
                yield Problem(key, given, f"positive {expected}", scale_hint)
    init = raw.get("init_lora_weights")
    if init not in INITIALIZATIONS:
        expected = "an initialization that keeps the base unchanged: true, false, gaussian, eva, orthogonal or mica"
        yield Problem("init_lora_weights", f"init_lora_weights = {init!a:.100}", expected, INITIALIZED_HINT)
    if raw.get("layers_to_transform") not in (None, []) and isinstance(raw.get("target_modules"), str):
        given = "layers_to_transform beside a regular expression in target_modules"
        yield Problem("layers_to_transform", given, "one of them", "PEFT refuses both together, too")


def _shape_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield fields with values of types that PEFT never writes."""
    texts = "names of modules, or null"
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        if not (raw.get(key) is None or isinstance(raw[key], str) or _is_list(raw[key], str)):
            yield Problem(key, f"{key} = {raw[key]!a:.100}", texts)
    if not (raw.get("modules_to_save") is None or _is_list(raw["modules_to_save"], str)):
        yield Problem("modules_to_save", f"modules_to_save = {raw['modules_to_save']!a:.100}", texts)
    layers = raw.get("layers_to_transform")
    if not (layers is None or type(layers) is int or _is_list(layers, int)):
        yield Problem("layers_to_transform", f"layers_to_transform = {layers!a:.100}", "numbers of layers, or null")
    for key in ("trainable_token_indices", "token_indices"):
        rows = raw.get(key)
        lists: list[Any] = list(rows.values()) if isinstance(rows, dict) else [rows]
        if rows is not None and not all(_is_list(ids, int) and all(row >= 0 for row in ids) for ids in lists):
            expected = "a list of token ids, or such lists by the names of tables"
            yield Problem(key, f"{key} = {rows!a:.100}", expected)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _says_something(value: Any) -> bool:
    return not (value is None or value is False or value == [] or value == {})


def _target_names(value: Any) -> str | tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def _names(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
