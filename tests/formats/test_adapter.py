"""PEFT's adapters: merged as PEFT merges them, and refused where they don't fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from puna.formats.checkpoint.adapters.adapter import merged, open_adapter
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError
from puna.testing.tiny_checkpoint import TOKENS, edit_json, logits_of, save

VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all linear layers": {"target_modules": "all-linear"},
    "rank stabilized": {"target_modules": ["o_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "dora on embeddings": {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "gate_proj"],
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {r"^model\.layers\.1\.mlp.gate_proj$": 5, "q_proj": 11},
    },
    "embeddings": {"target_modules": ["embed_tokens", "k_proj"]},
    "head and whole embeddings": {"target_modules": ["k_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "one layer": {"target_modules": ["k_proj"], "layers_to_transform": [1]},
}


def trained(base: Path, directory: Path, *, num_added: int = 0, kind: Any = "LORA", **settings: Any) -> torch.Tensor:
    """Write an adapter as if it were trained, with PEFT; return the logits of PEFT's model, which merges nothing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if num_added:
        model.resize_token_embeddings(model.config.vocab_size + num_added, mean_resizing=False)
    if kind == "LORA":
        config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings)
    else:
        config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", **settings)
    adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta")):
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            with torch.no_grad():  # in place: tied modules share their tensors
                parameter.copy_(noise.abs() + 1) if "magnitude" in name else parameter.add_(noise)
    adapted.save_pretrained(str(directory))
    with torch.no_grad():
        return adapted(TOKENS[None]).logits[0]


def assert_same_logits(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare within 1e-5 of the greatest logit: float32 rounds the sums of two programs that far apart."""
    torch.testing.assert_close(ours, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def read_merged(base: Path, directory: Path, out: Path) -> Llama:
    out.mkdir()
    write_checkpoint(out, merged(Checkpoint.open(base).source(), open_adapter(directory)))
    return Checkpoint.open(out).load()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_logits_equal_those_of_peft(base: Path, tmp_path: Path, variant: str):
    expected = trained(base, tmp_path / "adapter", **VARIANTS[variant])
    before = logits_of(Checkpoint.open(base).load())
    ours = logits_of(read_merged(base, tmp_path / "adapter", tmp_path / "merged"))
    assert_same_logits(ours, expected)
    assert (ours - before).abs().max() > 0.1


def test_an_adapter_of_another_base_is_refused_by_the_tensor_that_does_not_fit(base: Path, tmp_path: Path):
    trained(base, tmp_path / "adapter", target_modules=["up_proj"])
    source = Checkpoint.open(base).source()
    adapter = open_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"up_proj\.lora_B\.weight.*\[90, 4\], as the base has it"):
        merged(replace(source, config=replace(source.config, hidden_dim=90)), adapter)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*another base"):
        merged(replace(source, config=replace(source.config, num_layers=1)), adapter)


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "LOHA"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"lora_alpha": "16"},
        {"lora_alpha": 0},
        {"init_lora_weights": "pissa_niter_4"},
        {"rank_pattern": {"up_proj": 3}},
        {"exclude_modules": "[.*"},
        {"alpha_pattern": {"up_proj\\": 3}},
        {"use_dora": True},
        {"layer_replication": [[0, 2]]},
        {"auto_mapping": None, "auto_map": {"AutoModel": "evil.py"}},
    ],
    ids=str,
)
def test_what_would_be_merged_wrongly_is_refused(base: Path, tmp_path: Path, change: dict[str, Any]):
    trained(base, tmp_path / "adapter", target_modules=["up_proj"])
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(change))
    with pytest.raises(CheckpointError, match="rank" if "rank_pattern" in change else list(change)[-1]):
        open_adapter(tmp_path / "adapter")


def test_half_an_adapter_is_refused(base: Path, tmp_path: Path):
    trained(base, tmp_path / "adapter", target_modules=["up_proj"])
    weights = tmp_path / "adapter" / WEIGHTS_NAME
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights)
    with pytest.raises(CheckpointError, match=r"lora_B\.weight of model\.layers\.0\.mlp\.up_proj\.weight.*none"):
        merged(Checkpoint.open(base).source(), open_adapter(tmp_path / "adapter"))
    save_file({**tensors, "surprise": torch.ones(2)}, weights)
    with pytest.raises(CheckpointError, match="surprise"):
        open_adapter(tmp_path / "adapter")


def test_a_pickled_adapter_is_not_read(base: Path, tmp_path: Path):
    trained(base, tmp_path / "adapter", target_modules=["up_proj"])
    (tmp_path / "adapter" / WEIGHTS_NAME).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="never read"):
        open_adapter(tmp_path / "adapter")
