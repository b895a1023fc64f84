"""The name of a stored tensor -> the changed tensor of the base, and the part of an adapter.

Reads PEFT's names with and without prefixes, adapter names, and wrappers of compilers and sharding. Names of foreign
programs, with matrices in a different layout, are rejected with the way to PEFT's layout.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from puna.formats.checkpoint.adapters.config import MERGE_IN_PEFT, AdapterConfig
from puna.formats.checkpoint.adapters.patterns import is_saved
from puna.pipeline.errors import CheckpointError

PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The parts of one module's adapter, as PEFT names them.
DOWN, UP = "lora_A.weight", "lora_B.weight"
EMBEDDING_DOWN, EMBEDDING_UP = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"
# The rows of chosen tokens, in the place of the base's.
TOKENS = "trainable_tokens_delta"
# A tensor of the module's own copy; and the base's tensor beneath, stored again (a grown vocabulary, or as it was).
WHOLE, BASE_LAYER = "weight", "base_layer.weight"

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIXES = re.compile(r"^(?:base_model\.model\.|base_model\.|pretrained_model\.|module\.|model\.(?=model\.))*")
# Behind the part stands the adapter's name where a program stored PEFT's state_dict as it is.
ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lora_A(?:\.(?!weight$)(?P<name>[^.]+))?(?:\.weight)?$"), DOWN),
    (re.compile(r"\.lora_B(?:\.(?!weight$|bias$)(?P<name>[^.]+))?(?:\.weight)?$"), UP),
    (re.compile(r"\.lora_embedding_A(?:\.(?!weight$)(?P<name>[^.]+))?(?:\.weight)?$"), EMBEDDING_DOWN),
    (re.compile(r"\.lora_embedding_B(?:\.(?!weight$)(?P<name>[^.]+))?(?:\.weight)?$"), EMBEDDING_UP),
    (re.compile(r"\.lora_magnitude_vector(?:\.(?!weight$)(?P<name>[^.]+))?(?:\.weight)?$"), MAGNITUDE),
    (re.compile(r"(?:\.token_adapter)?\.trainable_tokens_delta(?:\.(?P<name>[^.]+))?$"), TOKENS),
    (re.compile(r"(?:\.token_adapter)?\.base_layer\.weight$"), BASE_LAYER),
)
SAVED = re.compile(r"\.modules_to_save(?:\.(?!weight$|\w+_proj\.|\w*layernorm\.)[^.]+)?(?=\.)")
ORIGINAL = re.compile(r"\.original_module(?=\.)")
MODULE = re.compile(
    r"(?:model\.)?(?P<path>embed_tokens|norm|layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj|"
    r"input_layernorm|post_attention_layernorm))|lm_head"
)


class Spelling(NamedTuple):
    """Tensor names of a foreign program. Example: see `find_spelling`.

    Attributes:
        mark: Expression for recognizing the program's names.
    """

    mark: re.Pattern[str]
    name: str
    hint: str


SPELLINGS = (
    Spelling(
        re.compile(r"\.(attn\.(q_proj|k_proj|v_proj|output_proj)|mlp\.w[123])\.(lora_[ab]\.weight|magnitude)$"),
        "torchtune's names, whose queries and keys lie in Meta's order",
        "torchtune's FullModelHFCheckpointer writes PEFT's adapter_config.json and adapter_model.safetensors",
    ),
    Spelling(
        re.compile(r"\.blk\.|^blk\.\d+\.|\.weight\.lora_[ab]$"),
        "llama.cpp's names",
        "Take the PEFT directory that convert_lora_to_gguf.py has read",
    ),
    Spelling(
        re.compile(r"\.lora_[ab]$"),
        "mlx-lm's names, whose matrices are transposed",
        "mlx_lm.fuse writes a checkpoint of the base and the adapter, which Puna reads",
    ),
    Spelling(
        re.compile(r"\.(adapter\.linear_(in|out)|linear_(qkv|proj|fc1|fc2))\b|\.to_wrap\."),
        "Megatron's and NeMo's names, whose queries, keys and values are one matrix",
        "Export the adapter to PEFT's layout: in NeMo, export_ckpt with target hf-peft",
    ),
    Spelling(
        re.compile(r"\.(attention\.w[qkvo]|feed_forward\.w[123]|tok_embeddings)\b"),
        "Meta's names, whose queries and keys lie in another order than transformers'",
        "Convert base and adapter to transformers' names with the program that trained the adapter",
    ),
    Spelling(
        re.compile(r"lora_(down|up)\.|^lora_(te|unet|transformer)"),
        "kohya's and diffusers' names",
        "Convert the adapter to PEFT's layout with the program that trained it",
    ),
    Spelling(
        re.compile(r"\.(q|k|v)kv?_proj\.|\.gate_up_proj\.|\.c_attn\.|query_key_value|\.W_pack\."),
        "names of matrices that are fused, or of another architecture than Llama",
        "Split the fused matrices with the program that trained the adapter, or use its own base",
    ),
    Spelling(
        re.compile(r"\.language_model\.|\.vision_|\.multi_modal"),
        "names of a model that reads pictures",
        "Use the adapter with the base that it was trained for; Puna computes text models",
    ),
    Spelling(
        re.compile(r"(^|\.)(score|classifier|v_head|summary)\."),
        "the head of a classifier or a reward model",
        "Only adapters of causal language models are merged here: " + MERGE_IN_PEFT,
    ),
    Spelling(
        re.compile(r"hada_w|lokr_|oft_|boft_|vera_lambda|ia3_|lora_E|lora_mobius|prompt_embeddings|\.hra_|ranknum"),
        "parts of another method than LoRA",
        MERGE_IN_PEFT,
    ),
    Spelling(
        re.compile(r"\.(lora_B(\.[^.]+)?|\w+)\.bias$"),
        "a bias, which the linear layers of a Llama don't have",
        "Train with bias = 'none' and lora_bias = False",
    ),
)  # fmt: skip


class AdapterKey(NamedTuple):
    """A parsed tensor name: changed tensor of the base, part of the adapter, adapter name. Example: see `parse_key`."""

    name: str
    part: str
    adapter_name: str = ""


def parse_key(key: str) -> AdapterKey | None:
    """Parse the name of a stored tensor; None for a name outside Llama adapters.

    Example:
        >>> parse_key("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
        AdapterKey(name='model.layers.0.self_attn.q_proj.weight', part='lora_A.weight', adapter_name='default')
    """
    path, part, adapter_name = PREFIXES.sub("", WRAPPERS.sub("", key)), "", ""
    for ending, ending_part in ENDINGS:
        if match := ending.search(path):
            path, part, adapter_name = path[: match.start()], ending_part, match.groupdict().get("name") or ""
            break
    else:
        if not path.endswith(".weight"):
            return None
        path = path.removesuffix(".weight")
        without = ORIGINAL.sub("", f"{path}.")[:-1]
        part = WHOLE if without == path else BASE_LAYER
        path = SAVED.sub("", f"{without}.")[:-1]
    module = MODULE.fullmatch(path)
    if module is None:
        return None
    name = f"model.{module['path']}" if module["path"] else path
    return AdapterKey(f"{name}.weight", part, adapter_name)


def find_spelling(key: str) -> Spelling | None:
    """Return the spelling of a tensor name, None for an unknown program or method."""
    return next((spelling for spelling in SPELLINGS if spelling.mark.search(key)), None)


def find_parts(keys: Iterable[str], config: AdapterConfig, path: Path) -> dict[str, dict[str, str]]:
    """Return the stored names of the parts, by the tensor of the base.

    Raises:
        CheckpointError: A name is a foreign program's, or two names mean the same part.
    """
    parsed_keys: dict[str, AdapterKey] = {}
    for key in keys:
        parsed = parse_key(key)
        if parsed is None:
            raise foreign_key(key, path)
        parsed_keys[key] = parsed
    if len(names := {parsed.adapter_name for parsed in parsed_keys.values() if parsed.adapter_name}) > 1:
        raise CheckpointError(
            f"{path} holds the adapters {', '.join(sorted(names))}",
            expected="a single adapter",
            hint="Save each adapter into a directory of its own: save_pretrained(..., selected_adapters=[NAME])",
        )
    if not parsed_keys:
        raise CheckpointError(f"{path} holds no tensors", expected="tensors of an adapter")
    # A tensor under its plain name is the module's own copy in modules_to_save; elsewhere it replaces the base's.
    copies = is_saved(config, sorted({parsed.name.removesuffix(".weight") for parsed in parsed_keys.values()}))
    parts: dict[str, dict[str, str]] = {}
    # Plain names first: PEFT reads those where it has written a module under two.
    for key, parsed in sorted(parsed_keys.items(), key=lambda item: (len(item[0]), item[0])):
        is_plain = parsed.part == WHOLE and ".modules_to_save." not in key
        is_copy = parsed.name.removesuffix(".weight") in copies
        part = BASE_LAYER if is_plain and not is_copy else parsed.part
        known = parts.setdefault(parsed.name, {}).setdefault(part, key)
        if known != key and not _are_one(known, key):
            raise CheckpointError(f"{path}: {known!a} and {key!a}", expected=f"a single {part} for {parsed.name}")
    return parts


def _are_one(plain: str, other: str) -> bool:
    """Return whether PEFT writes a table under two names, as for grown vocabularies."""
    return ".modules_to_save." in other or ".original_module." in other or "base_layer" in plain + other


def foreign_key(key: str, path: Path) -> CheckpointError:
    """Return an error with the program and the remedy."""
    if spelling := find_spelling(key):
        return CheckpointError(
            f"{path}: tensor {key!a}: {spelling.name}",
            expected="tensor names of a LoRA adapter in PEFT",
            hint=spelling.hint,
        )
    return CheckpointError(
        f"{path}: tensor {key!a}",
        expected=f"a name such as {PREFIX}model.layers.0.self_attn.q_proj.{DOWN}",
        hint="The name is unknown: save the adapter with PEFT's save_pretrained",
    )


def token_rows(config: AdapterConfig, name: str, *, is_tied: bool) -> tuple[int, ...]:
    """Return the rows of a table replaced by an adapter; a tied head follows the embeddings."""
    rows: Mapping[str, tuple[int, ...]] = config.token_rows or {}
    module = name.removesuffix(".weight")
    own = next((ids for key, ids in rows.items() if module.endswith(key)), ())
    if not own and name == HEAD and is_tied:
        return token_rows(config, EMBEDDING, is_tied=False)
    return own
