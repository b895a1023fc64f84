"""The merge stage: merged as the two compute side by side, measured, and never into rounded weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapter import VARIANTS, trained
from test_tuning import peft_model
from tiny_checkpoint import edit_json, logits_of, save, save_quantized

from puna import artifact
from puna.artifact import read_receipts, require_receipts
from puna.checkpoint.adapters.adapter import open_adapter
from puna.checkpoint.adapters.keys import CONFIG_NAME
from puna.checkpoint.checkpoint import Checkpoint
from puna.compress.merge import unmerged
from puna.errors import CheckpointError, ConfigError, ReceiptError
from puna.lineage import licences_of

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
def test_the_base_with_the_adapter_beside_it_computes_what_peft_merges(base: Path, tmp_path: Path, variant: str):
    expected = trained(base, tmp_path / "adapter", **VARIANTS[variant])
    model = unmerged(open_adapter(tmp_path / "adapter"), Checkpoint.open(base), torch.float32)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["rank stabilized", "dora", "patterns", "head and whole embeddings"])
def test_what_is_written_is_what_peft_merges_and_the_receipts_hold(
    perform_stage: Perform, base: Path, tmp_path: Path, variant: str
):
    expected = trained(base, tmp_path / "adapter", **VARIANTS[variant])
    perform_stage("merge", tmp_path / "out", adapter=str(tmp_path / "adapter"), base=str(base))
    torch.testing.assert_close(logits_of(Checkpoint.open(tmp_path / "out").load()), expected, atol=1e-4, rtol=0)
    found = receipts(tmp_path / "out")
    assert found.keys() == {"kl", "top1_agreement", "adapter_kept"} and all(each.held for each in found.values())
    assert found["kl"].value < 1e-6 and found["adapter_kept"].value > 0.999
    assert found["adapter_kept"].details["effect"] > 0.01
    assert found["kl"].parent == "adapter beside base"


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
    with pytest.raises(ConfigError, match="Merge into the float checkpoint that it was made of"):
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
    assert "was trained beside" not in log.read_text()
    perform_stage("sft", tmp_path / "other", **{**training, "steps": 1})
    perform_stage("merge", tmp_path / "out", **{**merge, "base": str(tmp_path / "other")})
    assert f"was trained beside {checkpoint_path.resolve()}" in log.read_text()
    roles = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]
    assert (roles["adapter"]["kind"], roles["base"]["kind"]) == ("adapter", "checkpoint")
