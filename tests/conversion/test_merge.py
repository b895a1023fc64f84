"""The merge stage: merged as the two compute side by side, measured, and never into rounded weights."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapter import VARIANTS, assert_same_logits, trained
from test_adapter_tables import VARIANTS as TABLE_VARIANTS
from test_architecture import imports
from test_tuning import peft_model

from puna.formats.checkpoint.adapters import adapter, patterns, reference
from puna.formats.checkpoint.adapters.delta import Delta
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME
from puna.formats.checkpoint.adapters.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import read_receipts, require_receipts
from puna.pipeline.artifacts.lineage import licences_of
from puna.pipeline.errors import CheckpointError, ConfigError, ReceiptError
from puna.testing.tiny_checkpoint import TOKENS, edit_json, logits_of, save, save_quantized

Perform = Callable[..., bool]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    return tmp_path / "base"


def receipts(path: Path) -> dict[str, artifact.Receipt]:
    return {receipt.claim: receipt for receipt in read_receipts(path)}


def scaled_adapter(base: Path, path: Path, factor: float) -> Path:
    """Write an adapter whose effect is `factor` times as strong."""
    adapted = peft_model(base, target_modules="all-linear")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data * factor
    adapted.save_pretrained(path)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_base_with_the_adapter_beside_it_computes_what_peft_computes(base: Path, tmp_path: Path, variant: str):
    expected = trained(base, tmp_path / "adapter", **VARIANTS[variant])
    reference = SideBySide(Checkpoint.open(base).load(torch.float32), tmp_path / "adapter")
    assert_same_logits(reference.logits(TOKENS.tolist()), expected)


@pytest.mark.parametrize("variant", ["rank stabilized", "dora", "patterns", "head and whole embeddings"])
def test_what_is_written_is_what_peft_merges_and_the_receipts_hold(
    perform_stage: Perform, base: Path, tmp_path: Path, variant: str
):
    expected = trained(base, tmp_path / "adapter", **VARIANTS[variant])
    perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "adapter"), base=str(base))
    assert_same_logits(logits_of(Checkpoint.open(tmp_path / "out").load()), expected)
    found = receipts(tmp_path / "out")
    assert found.keys() == {"kl", "top1_agreement", "adapter_kept", "largest_difference"} and all(
        each.held for each in found.values()
    )
    assert found["kl"].value < 1e-6 and found["adapter_kept"].value > 0.999
    assert found["adapter_kept"].details["effect"] > 0.01
    assert found["kl"].parent == "adapter beside base"


def test_the_reference_shares_no_code_with_the_merge():
    imported = set(imports(ast.parse(Path(reference.__file__).read_text())))
    assert {name for name in imported if name.startswith("puna.")} == {
        "puna.model.attend.packed_attend",
        "puna.model.llama.Llama",
    }


@pytest.mark.parametrize("variant", ["copy of the embeddings", "LoRA of the embeddings", "rows of the head"])
def test_a_merge_that_changes_the_head_of_a_tied_base_does_not_hold(
    perform_stage: Perform, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "tied").mkdir()
    save(tmp_path / "tied", tied=True)
    expected = trained(tmp_path / "tied", tmp_path / "adapter", **TABLE_VARIANTS[variant][0])
    settings = {"adapter": str(tmp_path / "adapter"), "base": str(tmp_path / "tied")}
    perform_stage("merge", tmp_path / "out", **settings)
    assert_same_logits(logits_of(Checkpoint.open(tmp_path / "out").load()), expected)
    found = receipts(tmp_path / "out")
    assert all(each.held for each in found.values()) and found["largest_difference"].value < 1e-4
    monkeypatch.setattr(Delta, "_stays_tied", True)
    with pytest.raises(ReceiptError):
        perform_stage("merge", tmp_path / "wrong", **settings)
    assert receipts(tmp_path / "wrong")["largest_difference"].value > 0.3


def test_a_wrong_scale_does_not_hold(
    perform_stage: Perform, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(base, tmp_path / "adapter", **VARIANTS["patterns"])
    settings = {"adapter": str(tmp_path / "adapter"), "base": str(base)}
    monkeypatch.setattr(patterns, "_first_keys", lambda *_: {})
    monkeypatch.setattr(adapter, "doubts", lambda *_: ())
    with pytest.raises(ReceiptError):
        perform_stage("merge", tmp_path / "wrong", **settings)
    assert receipts(tmp_path / "wrong")["largest_difference"].value > 0.3


def test_a_grown_vocabulary_is_merged_with_receipts(perform_stage: Perform, base: Path, tmp_path: Path):
    saved = ["lm_head", "embed_tokens"]
    expected = trained(base, tmp_path / "adapter", num_added=3, target_modules=["k_proj"], modules_to_save=saved)
    perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "adapter"), base=str(base))
    assert_same_logits(logits_of(Checkpoint.open(tmp_path / "out").load()), expected)
    assert all(each.held for each in receipts(tmp_path / "out").values())
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert "a vocabulary of its own: 533 rows instead of 530" in log


def test_an_update_that_rounding_erases_does_not_hold(perform_stage: Perform, base: Path, tmp_path: Path):
    values = []
    for name, factor in (("strong", 3.0), ("faint", 1e-3)):
        settings = {"adapter": str(scaled_adapter(base, tmp_path / name, factor)), "base": str(base)}
        out = tmp_path / f"{name}.out"
        perform_stage(
            "merge", out, **settings, dtype="bfloat16", tolerance_kl=1.0, min_agreement=0, ignore_receipts=True
        )
        values.append(receipts(out)["adapter_kept"])
    assert values[0].held and not values[1].held and values[1].value < 0.5
    with pytest.raises(ReceiptError, match="adapter_kept"):
        require_receipts(tmp_path / "faint.out")


def test_an_adapter_that_changes_nothing_is_kept_whole(perform_stage: Perform, base: Path, tmp_path: Path):
    adapter = scaled_adapter(base, tmp_path / "adapter", 0.0)
    perform_stage("merge", tmp_path / "out", adapter=str(adapter), base=str(base))
    assert receipts(tmp_path / "out")["adapter_kept"].value > 0.99


def test_given_texts_are_compared_on_and_give_no_licence(
    perform_stage: Perform, base: Path, tmp_path: Path, dataset_path: Path
):
    adapter = scaled_adapter(base, tmp_path / "adapter", 1.0)
    (base / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free of charge, to any person ...")
    settings = {"adapter": str(adapter), "base": str(base), "data": [str(dataset_path)], "num_tokens": 300}
    perform_stage("merge", tmp_path / "out", **settings)
    details = receipts(tmp_path / "out")["kl"].details
    assert (details["data"], details["num_tokens"]) == ("given", 300)
    assert licences_of(tmp_path / "out") == {"mit", "unknown"}  # of base and adapter


def test_into_a_quantized_base_nothing_is_merged_and_the_float_one_is_named(
    perform_stage: Perform, base: Path, tmp_path: Path, dataset_path: Path
):
    adapter = scaled_adapter(base, tmp_path / "adapter", 1.0)
    quantize = {"checkpoint": str(base), "data": [str(dataset_path)], "scheme": "int4", "num_tokens": 40}
    perform_stage("quantize", tmp_path / "int4", **quantize, ignore_receipts=True)
    with pytest.raises(
        ConfigError, match=rf"smaller than the steps between.*Merge into {base} and quantize.*--adapters"
    ):
        perform_stage(
            "merge", tmp_path / "out", adapter=str(adapter), base=str(tmp_path / "int4"), ignore_receipts=True
        )
    (tmp_path / "theirs").mkdir()
    save_quantized(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="Merge into the float checkpoint of this base"):
        perform_stage("merge", tmp_path / "out", adapter=str(adapter), base=str(tmp_path / "theirs"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_or_belongs_elsewhere_is_refused(perform_stage: Perform, base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="expected an adapter"):
        perform_stage("merge", tmp_path / "out", adapter=str(base), base=str(base))
    adapter = scaled_adapter(base, tmp_path / "adapter", 1.0)
    with pytest.raises(CheckpointError, match="is an adapter; expected a checkpoint"):
        perform_stage("merge", tmp_path / "out", adapter=str(adapter), base=str(adapter / ".." / "adapter"))
    edit_json(adapter / CONFIG_NAME, lambda raw: raw.update(peft_type="LOHA"))
    with pytest.raises(CheckpointError, match="LOHA"):
        perform_stage("merge", tmp_path / "out", adapter=str(adapter), base=str(base))


@pytest.mark.usefixtures("no_picture")
def test_an_adapter_trained_here_is_merged_and_its_other_base_is_told(
    perform_stage: Perform, training: dict[str, Any], checkpoint_path: Path, tmp_path: Path
):
    settings = {**training, "start": str(checkpoint_path), "adapter": {"rank": 2, "dora": True}}
    del settings["size"], settings["tokenizer"]
    perform_stage("sft", tmp_path / "adapter", **settings)
    merge = {"adapter": str(tmp_path / "adapter"), "base": str(checkpoint_path)}
    perform_stage("merge", tmp_path / "out", **merge)
    assert receipts(tmp_path / "out")["adapter_kept"].value > 0.999
    log = tmp_path / ".runs" / "out" / "log.txt"
    assert "was trained on" not in log.read_text()
    perform_stage("sft", tmp_path / "other", **{**training, "steps": 1})
    perform_stage("merge", tmp_path / "out", **{**merge, "base": str(tmp_path / "other")})
    assert f"was trained on {checkpoint_path.resolve()}" in log.read_text()
    roles = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]
    assert (roles["adapter"]["kind"], roles["base"]["kind"]) == ("adapter", "checkpoint")
