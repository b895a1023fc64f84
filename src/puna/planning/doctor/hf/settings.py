"""config.json -> findings about wrong settings, and a LlamaConfig.

A refused setting is reported and corrected in a copy, so the check continues with later settings.
"""

from typing import Any

from puna.formats.checkpoint.compressed.config import parse_quantization
from puna.formats.checkpoint.hf.config import FIXED, names_reward_model, parse_config
from puna.model.config import SIZES, LlamaConfig
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.hf.opened import CONFIG, TOKENIZER_CONFIG, Opened, text_dtype
from puna.planning.doctor.report import Report

OLD_CONTEXT = 8192
LLAMA3_THETA = 500_000.0
LLAMA3_VOCAB = 128_256
STORED_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ROPE_KEYS = ("rope_scaling", "rope_parameters")


def check_settings(opened: Opened) -> None:
    """Report every refused setting, and set `opened.config` if the sizes are readable."""
    raw, report = opened.json[CONFIG], opened.report
    for name in (CONFIG, TOKENIZER_CONFIG):
        if opened.json[name].get("auto_map"):
            remedy = "Remove auto_map: a plain Llama needs no code, and Puna never runs any"
            report.add("code-named", name, "auto_map names Python code in the directory", remedy)
    if not raw:
        return
    mended = _mend_fixed(raw, report)
    _check_spellings(raw, report)
    with report.attempt("quantization-unknown", CONFIG):
        opened.quantization = parse_quantization(raw, opened.path / CONFIG)
    config = _parse(mended, opened, without_rope=False)
    is_rope_read = config is not None
    opened.config = config or _parse(mended, opened, without_rope=True)
    if opened.config:
        _tell(opened.config, raw, report)
        if is_rope_read:
            remedy = "Copy rope_theta and rope_scaling from the config.json of the model that these weights come from"
            check_rope(opened.config, CONFIG, remedy, report)


def _mend_fixed(raw: dict[str, Any], report: Report) -> dict[str, Any]:
    mended = {key: value for key, value in raw.items() if key != "auto_map"}
    remedy = "Another kind of model is not a Llama; if this is one, put the setting right in config.json"
    if raw.get("model_type") != "llama":
        what = f"model_type = {raw.get('model_type')!a:.100}; expected 'llama'"
        report.add("config-unsupported", CONFIG, what, remedy)
        mended["model_type"] = "llama"
    for key, allowed in FIXED.items():
        is_reward = key == "architectures" and names_reward_model(raw)
        if key in raw and not is_reward and not any(raw[key] == value for value in allowed):
            what = f"{key} = {raw[key]!a:.100}; expected {allowed[0]!r}"
            report.add("config-unsupported", CONFIG, what, remedy)
            mended.pop(key)
    return mended


def _check_spellings(raw: dict[str, Any], report: Report) -> None:
    remedy = "Keep one spelling, the one that the model was trained with; programs differ in which they read"
    old, new = (raw.get(key) for key in ROPE_KEYS)
    pairs = [("torch_dtype", "dtype", raw.get("torch_dtype"), raw.get("dtype"))]
    if isinstance(new, dict):
        pairs.append(("rope_theta", "rope_parameters.rope_theta", raw.get("rope_theta"), new.get("rope_theta")))
        if isinstance(old, dict):
            shared = [key for key in old if key in new and old[key] != new[key]]
            pairs += [(f"rope_scaling.{key}", f"rope_parameters.{key}", old[key], new[key]) for key in shared]
    for one, other, first, second in pairs:
        if first is not None and second is not None and first != second:
            what = f"{one} = {first!a:.80}, but {other} = {second!a:.80}; expected the same"
            report.add("config-disagrees", CONFIG, what, remedy)


def _parse(mended: dict[str, Any], opened: Opened, *, without_rope: bool) -> LlamaConfig | None:
    """Return the parsed config, or None with a finding; a second attempt without RoPE adds no finding."""
    if without_rope:
        mended = {key: value for key, value in mended.items() if key not in (*ROPE_KEYS, "rope_theta")}
    elif all(isinstance(mended.get(key), dict) for key in ROPE_KEYS):
        mended = {key: value for key, value in mended.items() if key != "rope_scaling"}
    try:
        return parse_config(mended, opened.path / CONFIG, is_reward=names_reward_model(mended))
    except CheckpointError as error:
        if not without_rope:
            opened.report.refuse("config-unsupported", CONFIG, error)
        return None


def _tell(config: LlamaConfig, raw: dict[str, Any], report: Report) -> None:
    sizes = f"{config.num_layers} layers, width {config.dim:,}, {config.num_heads} heads over {config.num_kv_heads}"
    report.facts["parameters"] = f"{config.num_parameters:,} ({sizes})"
    report.facts["context"] = f"{config.max_context:,} tokens"
    scaling = config.rope_scaling
    stretched = f", stretched {scaling.factor:g} times from {scaling.original_max_context:,}" if scaling else ""
    report.facts["RoPE"] = f"base {config.rope_theta:,.0f}{stretched}"
    if dtype := text_dtype(raw):
        report.facts["dtype"] = ascii(dtype)[1:-1][:40]


def check_rope(config: LlamaConfig, where: str, remedy: str, report: Report) -> None:
    """Report RoPE settings different from Llama 3's in a model with Llama 3's context, vocabulary or sizes."""
    scaling = config.rope_scaling
    if config.rope_theta == LLAMA3_THETA and config.max_context > OLD_CONTEXT and scaling is None:
        what = f"a context of {config.max_context:,} with rope_theta 500000 and no scaling; expected rope_type 'llama3'"
        report.add("rope-lost", where, what, remedy)
    elif config.vocab_size == LLAMA3_VOCAB and config.rope_theta == 10_000.0:
        what = "rope_theta = 10000, the default of Llama 2; expected 500000 for Llama 3's vocabulary"
        report.add("rope-lost", where, what, remedy)
    published = _published_like(config)
    if published is None or scaling is None or config.max_context <= OLD_CONTEXT:
        return
    name, expected = published
    if scaling != expected.rope_scaling or config.rope_theta != expected.rope_theta:
        assert expected.rope_scaling
        stretch = f"factor {scaling.factor:g} from {scaling.original_max_context:,} on base {config.rope_theta:,.0f}"
        published_factor = expected.rope_scaling.factor
        expectation = f"factor {published_factor:g} from 8,192 on base 500,000, as the {name} has"
        what = f"RoPE stretched by {stretch}; expected {expectation}"
        report.add("rope-odd", where, what, remedy)


def _published_like(config: LlamaConfig) -> tuple[str, LlamaConfig] | None:
    for name, size in SIZES.items():
        same = (config.dim, config.hidden_dim, config.num_layers, config.num_heads) == (
            size.dim, size.hidden_dim, size.num_layers, size.num_heads,
        )  # fmt: skip
        if same and size.rope_scaling:
            return name, size
    return None


def check_dtype(opened: Opened) -> None:
    """Compare the dtype of config.json with the dtype of the stored weights."""
    stated = text_dtype(opened.json[CONFIG])
    floats = [STORED_NAMES[stored.dtype] for stored in opened.layout.values() if stored.dtype in STORED_NAMES]
    if not stated or not floats or opened.quantization:
        return
    most = max(set(floats), key=floats.count)
    if stated != most:
        remedy = f"Write {most} into config.json: programs load in the dtype that it names, and round or waste memory"
        report = opened.report
        report.add(
            "dtype-differs", CONFIG, f"{stated!a:.60} in config.json, {most} in the files; expected the same", remedy
        )
