"""The matcher of PEFT's patterns: PEFT itself says what is right, for each module of a Llama."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from test_adapter import assert_same_logits, read_merged, trained

from puna.formats.checkpoint.adapters import patterns
from puna.formats.checkpoint.adapters.adapter import open_adapter
from puna.formats.checkpoint.adapters.config import parse_config
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME
from puna.formats.checkpoint.adapters.patterns import module_settings
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.examine import examine
from puna.testing.tiny_checkpoint import edit_json, logits_of, save

MATRICES = ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj"]
MODULES = [f"model.layers.{layer}.{matrix}" for layer in (0, 1, 11) for matrix in MATRICES]
MODULES += ["model.embed_tokens", "lm_head"]
NAMES = ["q_proj", "v_proj", "proj", "mlp.gate_proj", "layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj",
         "lm_head", "embed_tokens", "head", "layers.1.self_attn.q_proj"]  # fmt: skip
EXPRESSIONS = [
    r"^model\.layers\.0\.self_attn\.q_proj$", r"layers\.(0|1)\.mlp\.gate_proj", r"layers\.[0-9]+\.mlp\.\w+",
    r".*\.gate_proj", r".*", r"model.layers.1.+", r"(?:model\.)?layers\.1?1\..*_proj", r"lm_head|embed_tokens", "",
    r".*layers\.\d\..*(q|v)_proj", r"mlp", r"(?=.*q_proj).*", r"[qv]_proj", r"layers.1", r"^lm_head", r"\w+",
]  # fmt: skip
NUMBERS = st.integers(1, 64)
TABLES = st.dictionaries(st.sampled_from(NAMES + EXPRESSIONS), NUMBERS, max_size=4)
LISTS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)
CONFIGS = st.fixed_dictionaries(
    {
        "r": NUMBERS,
        "lora_alpha": NUMBERS,
        "rank_pattern": TABLES,
        "alpha_pattern": TABLES,
        "target_modules": LISTS | st.sampled_from(EXPRESSIONS[:-2]),
        "exclude_modules": st.none() | LISTS | st.sampled_from(EXPRESSIONS),
        "modules_to_save": st.none() | st.lists(st.sampled_from(NAMES[5:9]), max_size=2),
        "layers_to_transform": st.none() | st.sampled_from([0, 1, 11, [], [0, 11], [2]]),
        "layers_pattern": st.sampled_from(["layers", ["blocks", "layers"], "l[a-z]+", ["nothing"]]) | st.none(),
    }
)


def peft_settings(raw: dict[str, Any], module: str) -> tuple[bool, int, float]:
    config = peft.LoraConfig(**raw)
    rank = raw["rank_pattern"].get(get_pattern_key(raw["rank_pattern"], module), config.r)
    alpha = raw["alpha_pattern"].get(get_pattern_key(raw["alpha_pattern"], module), config.lora_alpha)
    return bool(check_target_module_exists(config, module)), rank, alpha


def compare_with_peft(raw: dict[str, Any]) -> None:
    if isinstance(raw["target_modules"], str):
        raw |= {"layers_to_transform": None}
    if not raw["layers_to_transform"]:
        raw |= {"layers_pattern": None}
    ours = module_settings(parse_config({"peft_type": "LORA"} | raw), MODULES)
    assert {name: tuple(found) for name, found in ours.items()} == {name: peft_settings(raw, name) for name in MODULES}


@settings(max_examples=15, deadline=None)
@given(raw=CONFIGS)
def test_each_module_has_the_target_rank_and_alpha_that_peft_gives_it(raw: dict[str, Any]):
    compare_with_peft(raw)


@pytest.mark.tenth
@settings(max_examples=200, deadline=None)
@given(raw=CONFIGS)
def test_a_tenth_of_the_settings_agree_with_peft(raw: dict[str, Any]):
    compare_with_peft(raw)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(raw=CONFIGS)
def test_two_thousand_settings_agree_with_peft(raw: dict[str, Any]):
    compare_with_peft(raw)


ADAPTERS: dict[str, dict[str, Any]] = {
    "rank by a whole path": {"rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj$": 3}},
    "rank by alternatives": {"rank_pattern": {r"layers\.(0|1)\.mlp\.gate_proj": 2}},
    "alpha by a class": {"alpha_pattern": {r"layers\.[0-9]+\.mlp\.gate_proj": 9}},
    "alpha by anything": {"alpha_pattern": {r".*\.gate_proj": 9, "q_proj": 5}},
    "an expression of targets": {"target_modules": r".*layers\.1\..*(q|gate)_proj"},
    "all linear but some": {"target_modules": "all-linear", "exclude_modules": r".*\.(up|o)_proj", "use_rslora": True},
    "layers": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "the first key wins": {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "q_proj": 6}, "use_dora": True},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_merge_and_doctor_read_the_patterns_that_peft_writes(tmp_path: Path, name: str):
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    chosen: dict[str, Any] = {"target_modules": ["q_proj", "gate_proj"]} | ADAPTERS[name]
    expected = trained(tmp_path / "base", tmp_path / "adapter", **chosen)
    assert_same_logits(logits_of(read_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")), expected)
    report = examine(tmp_path / "adapter", base=tmp_path / "base")
    assert not [finding.seen for finding in report.findings if finding.severity == "broken"]


def test_a_target_that_the_settings_leave_out_is_named_by_merge_and_doctor(tmp_path: Path):
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj", "gate_proj"])
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(exclude_modules=r".*\.1\..*gate_proj"))
    told = "matrices for model.layers.1.mlp.gate_proj, which target_modules and its exceptions leave out"
    with pytest.raises(CheckpointError, match=re.escape(told)):
        open_adapter(tmp_path / "adapter")
    findings = {finding.code: finding.seen for finding in examine(tmp_path / "adapter").findings}
    assert told in findings["adapter-target"]


def test_targets_without_matrices_are_said_and_stay_as_in_the_base(tmp_path: Path):
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    names = ["q_proj", "v_proj", "o_proj", "a_module_of_another_model"]
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(target_modules=names))
    source, note = open_source(tmp_path / "adapter", base=tmp_path / "base")
    lost = "model.layers.0.self_attn.o_proj, model.layers.1.self_attn.o_proj"
    assert f"nothing for {lost}, which it targets" in note and not source.config.tie_embeddings
    findings = {
        finding.code: finding.seen for finding in examine(tmp_path / "adapter", base=tmp_path / "base").findings
    }
    assert findings == {"adapter-extra": f"no matrices for {lost}, which target_modules names"}


@pytest.mark.parametrize(
    ("expression", "told"),
    [("[.*", "unterminated character set"), ("(?P<a>x)(?P<a>y)", "redefinition"), ("x" * 20_001, "20,013 characters")],
)
def test_an_expression_that_is_none_is_named_with_its_setting(expression: str, told: str):
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    with pytest.raises(CheckpointError, match=f"alpha_pattern has .*{told}"):
        module_settings(parse_config(raw | {"alpha_pattern": {f"{expression}|q": 1}}), MODULES)


def test_an_expression_that_never_ends_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.5)  # the process's own limit is 3 s of its CPU time
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": r"(\w+\.?)+\.never"}
    config = replace(parse_config(raw), rank_pattern={r".*\.q_proj": 2})
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match=r"target_modules has .*takes too long.*Write the names of the modules"):
        module_settings(config, [*MODULES, "model.layers.0." + "a" * 60])
    assert time.monotonic() - begin < 30


def test_the_merged_scale_follows_the_same_matcher(tmp_path: Path):
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], alpha_pattern={r".*1\.\w+\.q_proj": 10})
    adapter = open_adapter(tmp_path / "adapter")
    assert dict(adapter.delta.scales) == {
        "model.layers.0.self_attn.q_proj.weight": 1.5,
        "model.layers.1.self_attn.q_proj.weight": 2.5,
    }
    assert Checkpoint.open(tmp_path / "base").config.num_layers == 2


@pytest.mark.parametrize("has_magnitudes", [True, False])
def test_settings_and_tensors_that_differ_over_dora_are_named_by_merge_and_doctor(tmp_path: Path, has_magnitudes: bool):
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"], use_dora=has_magnitudes)
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(use_dora=not has_magnitudes))
    told = f"use_dora = {not has_magnitudes}, and the tensors of adapter_model.safetensors differ"
    with pytest.raises(CheckpointError, match=told):
        open_adapter(tmp_path / "adapter")
    for base in (None, tmp_path / "base"):
        findings = {finding.code: finding.seen for finding in examine(tmp_path / "adapter", base=base).findings}
        assert told in findings["adapter-rank"]
