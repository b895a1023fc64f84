"""Adapters that PEFT and TRL write in their less common settings: read as PEFT itself reads them."""

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from test_adapter import assert_same_logits, read_merged

from puna.formats.checkpoint.adapters.adapter import open_adapter
from puna.formats.checkpoint.adapters.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.pipeline.errors import CheckpointError
from puna.testing.tiny_checkpoint import TOKENS, logits_of, save

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPRESSIONS = [r".*\.(q|v)_proj", r"layers\.1\..*", r".*\.mlp\.\w+", r"model\.layers\.0\.self_attn\.q_proj", "up_proj"]
ROUNDS = 200


def random_settings(seed: int) -> dict[str, Any]:
    """Draw settings of a LoRA, of which each is seldom given."""
    draw = random.Random(seed)
    names = draw.sample(MATRICES, draw.randint(1, 4)) + draw.choice([[], [], ["embed_tokens"], ["lm_head"]])
    settings: dict[str, Any] = {"r": draw.randint(1, 6), "lora_alpha": draw.randint(1, 12)}
    settings["target_modules"] = draw.choice([names, names, "all-linear", r".*\.(q|down)_proj"])
    settings["rank_pattern"] = {key: draw.randint(1, 5) for key in draw.sample(EXPRESSIONS, draw.randint(0, 2))}
    settings["alpha_pattern"] = {key: draw.randint(1, 9) for key in draw.sample(EXPRESSIONS, draw.randint(0, 2))}
    settings |= {name: True for name in ("use_rslora", "use_dora") if draw.random() < 0.3}
    if draw.random() < 0.3:
        settings["exclude_modules"] = draw.choice([["layers.0.self_attn.q_proj", "up_proj"], r".*1\.mlp.*"])
    if draw.random() < 0.3 and not isinstance(settings["target_modules"], str):
        settings["layers_to_transform"] = draw.choice([0, [1]])
    targeted = {"embed_tokens", "lm_head"} & {*names} if settings["target_modules"] is names else set()
    if draw.random() < 0.4:
        settings["modules_to_save"] = draw.choice([["lm_head"], ["embed_tokens"], ["norm", "lm_head"], ["self_attn"]])
    elif not targeted and draw.random() < 0.5:
        settings["trainable_token_indices"] = draw.choice([TOKENS[[1, 4]].tolist(), {"lm_head": [5, 6]}])
    if draw.random() < 0.2:
        settings["ensure_weight_tying"] = True
    return settings


def check_written(base: Path, adapter: Path, out: Path, *, vocab_size: int = 0) -> None:
    """Compare what is merged, and the reference of the merge's receipts, with what PEFT computes from the files."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(model, adapter).eval()(TOKENS[None]).logits[0]
    assert_same_logits(logits_of(read_merged(base, adapter, out)), expected)
    assert_same_logits(SideBySide(Checkpoint.open(base).load(), adapter).logits(TOKENS.tolist()), expected)


def write_and_check(folder: Path, seed: int) -> None:
    base = folder / ("tied" if seed % 2 else "untied")
    if not base.exists():
        base.mkdir(parents=True)
        save(base, tied=bool(seed % 2))
    settings = random_settings(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    except (ValueError, TypeError):  # settings that PEFT refuses together
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.add_(noise.abs() if "magnitude" in name else noise)
    adapted.save_pretrained(str(folder / str(seed)))
    try:
        check_written(base, folder / str(seed), folder / f"{seed}.merged")
    except RuntimeError as error:  # PEFT cannot load it: its rank_pattern was sorted
        assert "size mismatch" in str(error) and len(settings["rank_pattern"]) == 2
        with pytest.raises(CheckpointError, match=r"has rank \d instead of \d.*sorts them when it saves"):
            open_adapter(folder / str(seed))
    except Exception as error:
        raise AssertionError(f"seed {seed}: {settings}") from error


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_random_settings_are_read_as_peft_reads_them(tmp_path: Path):
    for seed in range(4):
        write_and_check(tmp_path, seed)


@pytest.mark.tenth
@pytest.mark.filterwarnings("ignore")
def test_a_tenth_of_the_random_adapters_is_read_as_peft_reads_them(tmp_path: Path):
    for seed in range(ROUNDS // 10):
        write_and_check(tmp_path, 1000 + seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_hundred_random_adapters_are_read_as_peft_reads_them(tmp_path: Path):
    for seed in range(ROUNDS):
        write_and_check(tmp_path, 2000 + seed)


LORA: dict[str, Any] = {"r": 2, "lora_alpha": 3, "task_type": "CAUSAL_LM"}
TRAINED: dict[str, dict[str, Any]] = {
    "rank and alpha patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {r"layers\.1\.mlp\..*": 4},
        "alpha_pattern": {r".*\.q_proj": 9},
    },
    "head and embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "rows of tokens": {"target_modules": ["v_proj"], "trainable_token_indices": TOKENS[[1, 4]].tolist()},
}


def trainer_settings(folder: Path, kind: Any) -> Any:
    return kind(
        output_dir=str(folder / "run"), max_steps=2, per_device_train_batch_size=2, learning_rate=0.1,
        report_to=[], use_cpu=True, save_strategy="no", max_length=32, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip


def new_base(folder: Path, *, tied: bool = True) -> tuple[Path, Any]:
    (folder / "base").mkdir()
    save(folder / "base", tied=tied)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.pad_token = tokenizer.eos_token
    return folder / "base", tokenizer


@pytest.mark.tenth
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", TRAINED)
def test_what_sft_trainer_saves_is_read_as_peft_reads_it(tmp_path: Path, variant: str):
    trl, datasets = (pytest.importorskip(name) for name in ("trl", "datasets"))

    # TRL's loss reads lm_head.bias, which PEFT's wrapper of a tied head's tokens does not have.
    base, tokenizer = new_base(tmp_path, tied=variant != "rows of tokens")
    trainer = trl.SFTTrainer(
        str(base),
        args=trainer_settings(tmp_path, trl.SFTConfig),
        train_dataset=datasets.Dataset.from_dict({"text": ["the quick brown fox", "jumps over the lazy dog"] * 2}),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(**LORA, **TRAINED[variant]),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    check_written(base, tmp_path / "adapter", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_sft_trainer_saves_with_a_grown_vocabulary_brings_its_tokenizer(tmp_path: Path):
    trl, datasets = (pytest.importorskip(name) for name in ("trl", "datasets"))

    base, tokenizer = new_base(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mark|>", "<|end_mark|>"]})
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    trainer = trl.SFTTrainer(
        model,
        args=trainer_settings(tmp_path, trl.SFTConfig),
        train_dataset=datasets.Dataset.from_dict({"text": ["the <|mark|>quick<|end_mark|> fox", "jumps"] * 2}),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(**LORA, **TRAINED["head and embeddings"]),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    check_written(base, tmp_path / "adapter", tmp_path / "out", vocab_size=len(tokenizer))
    merged = Checkpoint.open(tmp_path / "out")
    assert merged.config.vocab_size == 532 and merged.tokenizer().special("mark") == 530


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_dpo_trainer_saves_is_read_as_peft_reads_it(tmp_path: Path):
    trl, datasets = (pytest.importorskip(name) for name in ("trl", "datasets"))

    base, tokenizer = new_base(tmp_path)
    pairs = {"prompt": ["the quick"] * 4, "chosen": [" brown fox"] * 4, "rejected": [" lazy dog"] * 4}
    trainer = trl.DPOTrainer(
        str(base),
        args=trainer_settings(tmp_path, trl.DPOConfig),
        train_dataset=datasets.Dataset.from_dict(pairs),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(**LORA, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    check_written(base, tmp_path / "adapter", tmp_path / "out")
