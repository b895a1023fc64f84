"""Names of tensors and settings of adapters as other programs write them: read, or named with the way out."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import assert_same_logits, read_merged, trained

from puna.formats.checkpoint.adapters.adapter import open_adapter
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.keys import parse_key
from puna.formats.checkpoint.adapters.verification.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.pipeline.errors import CheckpointError, ConfigError
from puna.planning.doctor.examine import examine
from puna.testing.tiny_checkpoint import TOKENS, edit_json, logits_of, save

Rename = Callable[[str], str]
Trained = tuple[Path, Path, torch.Tensor]
PREFIX = "base_model.model."


def named(key: str, name: str) -> str:
    """Write an adapter's name into a key, as PEFT's own state_dict has it."""
    key = re.sub(r"(lora_[AB])\.weight$", rf"\1.{name}.weight", key)
    key = re.sub(r"(lora_embedding_[AB])$", rf"\1.{name}", key)
    key = re.sub(r"(lora_magnitude_vector)$", rf"\1.{name}.weight", key)
    return re.sub(r"(lm_head|norm)\.weight$", rf"\1.modules_to_save.{name}.weight", key)


SPELLINGS: dict[str, Rename] = {
    "PEFT's state_dict with the adapter's name": lambda key: named(key, "default"),
    "a name of the adapter's own": lambda key: named(key, "layers"),
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "no prefix and no model": lambda key: key.removeprefix(PREFIX).removeprefix("model."),
    "a short prefix": lambda key: key.replace(PREFIX, "base_model."),
    "wrapped twice": lambda key: PREFIX + key,
    "a compiled model": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "a compiled trainer": lambda key: f"_orig_mod.{named(key, 'default')}",
    "a module within": lambda key: re.sub(r"(layers\.\d\.)", r"\1_checkpoint_wrapped_module.", key),
    "FSDP": lambda key: key.replace(PREFIX, f"_fsdp_wrapped_module.{PREFIX}_fsdp_wrapped_module."),
    "a value head's wrapper": lambda key: f"pretrained_model.{key}",
    "a model in a model": lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}model.model."),
    "data parallel": lambda key: f"module.{key}",
    "DoRA's new name": lambda key: re.sub(r"(magnitude_vector)$", r"\1.weight", key),
    "saved modules of older PEFT": lambda key: re.sub(r"(lm_head|norm)\.weight$", r"\1.modules_to_save.weight", key),
    "matrices without .weight": lambda key: re.sub(r"(lora_[AB])\.weight$", r"\1", key),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "base").mkdir()
    save(folder / "base", tied=True)
    targets: dict[str, Any] = {
        "target_modules": ["q_proj", "up_proj", "embed_tokens"],
        "modules_to_save": ["lm_head", "norm"],
    }
    return folder / "base", folder / "adapter", trained(folder / "base", folder / "adapter", use_dora=True, **targets)


def renamed(adapter: Path, out: Path, rename: Rename) -> Path:
    shutil.copytree(adapter, out)
    save_file({rename(key): tensor for key, tensor in load_file(out / WEIGHTS_NAME).items()}, out / WEIGHTS_NAME)
    return out


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_of_names_is_read_by_merge_doctor_and_the_reference(
    written: Trained, tmp_path: Path, spelling: str
):  # fmt: skip
    base, adapter, expected = written
    path = renamed(adapter, tmp_path / "adapter", SPELLINGS[spelling])
    assert_same_logits(logits_of(read_merged(base, path, tmp_path / "out")), expected)
    assert_same_logits(SideBySide(Checkpoint.open(base).load(), path).logits(TOKENS.tolist()), expected)
    assert not [finding for finding in examine(path, base=base).findings if finding.severity == "broken"]


FOREIGN: dict[str, tuple[Rename, str]] = {
    "torchtune": (
        lambda key: key.replace(f"{PREFIX}model.", "").replace("self_attn.q_proj.lora_A", "attn.q_proj.lora_a"),
        "torchtune's names.*FullModelHFCheckpointer",
    ),
    "mlx-lm": (lambda key: key.replace("lora_A.weight", "lora_a").replace(PREFIX, ""), "mlx-lm's names.*mlx_lm.fuse"),
    "llama.cpp": (
        lambda key: re.sub(r".*layers\.(\d+)\.self_attn\.q_proj\.lora_A\.weight", r"blk.\1.attn_q.weight.lora_a", key),
        "llama.cpp's names.*convert_lora_to_gguf",
    ),
    "NeMo": (
        lambda key: key.replace("self_attn.q_proj.lora_A", "self_attention.linear_qkv.adapter.linear_in"),
        "NeMo's names.*hf-peft",
    ),
    "Meta": (lambda key: key.replace("self_attn.q_proj", "attention.wq"), "Meta's names"),
    "kohya": (lambda key: key.replace("lora_A.weight", "lora_down.weight"), "kohya's"),
    "fused": (lambda key: key.replace("q_proj", "qkv_proj"), "fused"),
    "pictures": (lambda key: key.replace("model.layers", "model.language_model.layers"), "reads pictures"),
    "a classifier": (lambda key: f"{PREFIX}score.weight" if "1.mlp" in key else key, "classifier or a reward model"),
    "LoHa": (lambda key: key.replace("lora_A.weight", "hada_w1_a"), "another method than LoRA.*merge_and_unload"),
    "IA3": (lambda key: key.replace("lora_A.weight", "ia3_l"), "another method than LoRA"),
    "VeRA": (lambda key: key.replace("lora_A.weight", "vera_lambda_b"), "another method than LoRA"),
    "a bias": (lambda key: key.replace("lora_magnitude_vector", "lora_B.bias"), "a bias, which.*lora_bias = False"),
    "nobody": (lambda key: key.replace("lora_A", "surprise"), "save the adapter with PEFT's save_pretrained"),
}


@pytest.mark.parametrize("spelling", FOREIGN)
def test_a_spelling_that_is_not_read_is_named_and_never_called_another_base(
    written: Trained, tmp_path: Path, spelling: str
):
    base, adapter, _ = written
    rename, told = FOREIGN[spelling]
    path = renamed(adapter, tmp_path / "adapter", rename)
    with pytest.raises(CheckpointError, match=told) as caught:
        open_adapter(path)
    assert "another base" not in str(caught.value)
    findings = [f"{finding.seen} {finding.remedy}" for finding in examine(path, base=base).findings]
    assert spelling == "nobody" or any(re.search(told, text) for text in findings)
    assert not any("another base" in text for text in findings)


def test_two_adapters_in_one_file_are_refused(written: Trained, tmp_path: Path):
    _, adapter, _ = written
    path = renamed(adapter, tmp_path / "adapter", lambda key: named(key, "two" if ".1." in key else "one"))
    with pytest.raises(
        CheckpointError, match=r"holds the adapters one, two; expected a single adapter.*selected_adapters"
    ):
        open_adapter(path)


def test_a_module_under_two_names_is_refused(written: Trained, tmp_path: Path):
    shutil.copytree(written[1], tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_NAME)
    twice = {named(key, "default"): tensor + 1 for key, tensor in tensors.items() if "q_proj.lora_A" in key}
    save_file(tensors | twice, tmp_path / "adapter" / WEIGHTS_NAME)
    with pytest.raises(
        CheckpointError, match=r"q_proj\.lora_A\.weight' and .*lora_A\.default.*expected a single lora_A"
    ):
        open_adapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("key", "name", "part"),
    [
        (f"{PREFIX}model.layers.0.mlp.modules_to_save.default.up_proj.weight", "model.layers.0.mlp.up_proj", "weight"),
        (f"{PREFIX}model.layers.0.mlp.modules_to_save.up_proj.weight", "model.layers.0.mlp.up_proj", "weight"),
        (f"{PREFIX}model.layers.12.mlp.up_proj.weight", "model.layers.12.mlp.up_proj", "weight"),
        (f"{PREFIX}lm_head.original_module.weight", "lm_head", "base_layer.weight"),
        (f"{PREFIX}model.embed_tokens.token_adapter.base_layer.weight", "model.embed_tokens", "base_layer.weight"),
        (f"{PREFIX}model.embed_tokens.trainable_tokens_delta", "model.embed_tokens", "trainable_tokens_delta"),
    ],
)
def test_names_of_saved_modules_lead_to_the_tensor_of_the_base(key: str, name: str, part: str):
    place = parse_key(key)
    assert place is not None and (place.name, place.part) == (f"{name}.weight", part)


HARMLESS: list[dict[str, Any]] = [
    {"alpha_pattern": None, "rank_pattern": None, "exclude_modules": None, "layers_to_transform": None},
    {"modules_to_save": ["lm_head", "norm"], "layers_pattern": None, "use_rslora": None, "lora_bias": None},
    {"lora_alpha": 6.0, "lora_dropout": 0.5, "bias": "all", "fan_in_fan_out": True, "inference_mode": False},
    {"base_model_name_or_path": "someone/model", "revision": "main", "peft_version": "0.99.0", "task_type": None},
    {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "loftq_config": {}, "megatron_core": "megatron.core"},
    {"init_lora_weights": None, "corda_config": None, "runtime_config": {"ephemeral_gpu_offload": True}},
    {"a_field_of_tomorrow": None, "another": False, "layer_replication": []},
]


@pytest.mark.parametrize("change", HARMLESS, ids=str)
def test_settings_that_change_nothing_are_read(written: Trained, tmp_path: Path, change: dict[str, Any]):
    base, adapter, expected = written
    shutil.copytree(adapter, tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(change))
    assert_same_logits(logits_of(read_merged(base, tmp_path / "adapter", tmp_path / "out")), expected)
    assert open_adapter(tmp_path / "adapter").notes == ()


def test_a_field_of_a_newer_peft_is_said_and_left_out(written: Trained, tmp_path: Path):
    shutil.copytree(written[1], tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(use_tomorrow=True, rank_of_tomorrow=3))
    (note,) = open_adapter(tmp_path / "adapter").notes
    assert "does not know and leaves out, as PEFT does: rank_of_tomorrow, use_tomorrow" in note
    findings = {finding.code: finding.seen for finding in examine(tmp_path / "adapter").findings}
    assert "adapter-extra" in findings


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, r"peft_type = 'LOHA'; expected 'LORA'.*merge_and_unload"),
    ({"peft_type": "PROMPT_TUNING"}, r"vectors before the prompt.*train a LoRA"),
    ({"peft_type": None, "fine_tune_type": "lora"}, r"as mlx-lm writes them.*mlx_lm\.fuse"),
    ({"peft_type": None, "adapter_type": "lora", "lora_attn_modules": []}, r"as torchtune writes them"),
    ({"init_lora_weights": "pissa"}, r"init_lora_weights = 'pissa'.*path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "corda"}, r"init_lora_weights = 'corda'.*base was changed before training"),
    ({"use_qalora": True}, r"use_qalora = True.*merge_and_unload"),
    ({"lora_bias": True}, r"lora_bias = True.*no bias"),
    ({"target_parameters": ["experts.gate"]}, r"target_parameters"),
    ({"r": "8"}, r"'r' = '8'; expected a positive integer"),
    ({"r": None}, r"'r' = None; expected a positive integer"),
    ({"modules_to_save": "lm_head"}, r"modules_to_save = 'lm_head'; expected names"),
    ({"layers_to_transform": "all"}, r"layers_to_transform = 'all'"),
    ({"layers_to_transform": [0], "target_modules": ".*_proj"}, r"layers_to_transform beside a regular expression"),
    ({"trainable_token_indices": [-1]}, r"trainable_token_indices = \[-1\]; expected a list of token ids"),
    ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern: 'q_proj' = 2\.5; expected positive ranks"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED, ids=str)
def test_settings_that_cannot_be_followed_are_named_by_all(
    written: Trained, tmp_path: Path, change: dict[str, Any], told: str
):
    shutil.copytree(written[1], tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(change))
    with pytest.raises(CheckpointError, match=told):
        open_adapter(tmp_path / "adapter")
    unsupported = [each for each in examine(tmp_path / "adapter").findings if each.code == "adapter-unsupported"]
    assert any(re.search(told, f"{each.seen} {each.remedy}") for each in unsupported)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adapter_model.bin", "never read: save_pretrained of PEFT writes safetensors"),
        ("adapter_0.pt", "torchtune's pickles are never read"),
        ("adapters.safetensors", r"mlx-lm's adapter: mlx_lm\.fuse"),
    ],
)
def test_weights_of_another_name_are_named(written: Trained, tmp_path: Path, name: str, told: str):
    shutil.copytree(written[1], tmp_path / "adapter")
    (tmp_path / "adapter" / WEIGHTS_NAME).rename(tmp_path / "adapter" / name)
    with pytest.raises(CheckpointError, match=told):
        open_adapter(tmp_path / "adapter")
    findings = {finding.code: finding.remedy for finding in examine(tmp_path / "adapter").findings}
    assert re.search(told, findings["weights-missing"])


def test_an_adapter_for_llama_cpp_and_half_a_directory_are_named(
    perform_stage: Callable[..., bool], written: Trained, tmp_path: Path
):
    base, adapter, _ = written
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"lora\.gguf.*convert_lora_to_gguf"):
        perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "lora.gguf"), base=str(base))
    shutil.copytree(adapter, tmp_path / "half")
    (tmp_path / "half" / CONFIG_NAME).unlink()
    with pytest.raises(ConfigError, match=r"Copy adapter_config\.json, too"):
        perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "half"), base=str(base))
    with pytest.raises(ConfigError, match=r"Name the directory"):
        perform_stage("merge", tmp_path / "out", adapter=str(adapter / WEIGHTS_NAME), base=str(base))
    shutil.copytree(adapter, tmp_path / "checkpoints" / "checkpoint-500")
    with pytest.raises(ConfigError, match=r"Name one of the adapters inside: .*checkpoint-500"):
        perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "checkpoints"), base=str(base))


def test_a_config_of_the_base_beside_an_adapter_makes_no_checkpoint_of_it(
    perform_stage: Callable[..., bool], written: Trained, tmp_path: Path
):
    base, adapter, expected = written
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copy(base / "config.json", tmp_path / "adapter")
    perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "adapter"), base=str(base))
    assert_same_logits(logits_of(Checkpoint.open(tmp_path / "out").load()), expected)
    assert examine(tmp_path / "adapter").kind == "adapter"
