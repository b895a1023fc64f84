"""Adapters of the embeddings and the head: what PEFT computes, whether the base has one table for both or two."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from test_adapter import assert_same_logits, read_merged, trained

from puna.formats.checkpoint.adapters.adapter import open_adapter, require_runnable, require_trainable
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.merge import merged
from puna.formats.checkpoint.adapters.verification.reference import SideBySide
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.examine import examine
from puna.testing.tiny_checkpoint import TOKENS, edit_json, logits_of, random_llama, save, tokenizer

LAYERS: dict[str, Any] = {"target_modules": ["k_proj"]}
BOTH = ["lm_head", "embed_tokens"]
# Ids that the compared text holds.
ROWS, OTHER_ROWS = TOKENS[[1, 2]].tolist(), TOKENS[[2, 5]].tolist()
# Settings of an adapter, and whether head and embeddings of a tied base stay one table.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "copies of both": (LAYERS | {"modules_to_save": BOTH}, False),
    "copy of the head": (LAYERS | {"modules_to_save": ["lm_head"]}, False),
    "copy of the embeddings": (LAYERS | {"modules_to_save": ["embed_tokens"]}, False),
    "copies of norms": (LAYERS | {"modules_to_save": ["norm", "input_layernorm"]}, True),
    "copy of a module with matrices": (LAYERS | {"modules_to_save": ["mlp"]}, True),
    "LoRA of the embeddings": ({"target_modules": ["k_proj", "embed_tokens"]}, False),
    "LoRA of the head": ({"target_modules": ["k_proj", "lm_head"]}, False),
    "LoRA of both": ({"target_modules": ["k_proj", *BOTH]}, False),
    "DoRA of both": ({"target_modules": ["k_proj", *BOTH], "use_dora": True}, False),
    "copy of the head, LoRA of the embeddings": (
        {"target_modules": ["k_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        False,
    ),
    "tied copies": (LAYERS | {"modules_to_save": BOTH, "ensure_weight_tying": True}, True),
    "tied LoRA": ({"target_modules": ["k_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
    "tied LoRA, named by the head": ({"target_modules": ["k_proj", "lm_head"], "ensure_weight_tying": True}, True),
    "rows": (LAYERS | {"trainable_token_indices": ROWS}, True),
    "rows of the head": (LAYERS | {"trainable_token_indices": {"lm_head": ROWS}}, False),
    "rows of both": (LAYERS | {"trainable_token_indices": {"embed_tokens": ROWS, "lm_head": ROWS}}, True),
    "other rows of the head": (
        LAYERS | {"trainable_token_indices": {"embed_tokens": ROWS, "lm_head": OTHER_ROWS}},
        False,
    ),
    "rows, and LoRA of the head": ({"target_modules": ["lm_head"], "trainable_token_indices": ROWS}, False),
    "rows alone": ({"kind": "TRAINABLE_TOKENS", "token_indices": ROWS}, True),
}


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    save(tmp_path / "base", tied=request.param == "tied")
    return tmp_path / "base"


def is_tied(path: Path) -> bool:
    return Checkpoint.open(path).config.tie_embeddings


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_tables_give_the_logits_of_peft(base: Path, tmp_path: Path, variant: str):
    settings, stays_tied = VARIANTS[variant]
    expected = trained(base, tmp_path / "adapter", **settings)
    ours = logits_of(read_merged(base, tmp_path / "adapter", tmp_path / "merged"))
    assert_same_logits(ours, expected)
    reference = SideBySide(Checkpoint.open(base).load(), tmp_path / "adapter")
    assert_same_logits(reference.logits(TOKENS.tolist()), expected)
    assert (ours - logits_of(Checkpoint.open(base).load())).abs().max() > 0.1
    assert is_tied(tmp_path / "merged") == (is_tied(base) and stays_tied)
    report = examine(tmp_path / "adapter", base=base)
    assert not [finding for finding in report.findings if finding.severity == "broken"]
    assert ("become two" in report.facts.get("merged", "")) == (is_tied(base) and not stays_tied)


@pytest.mark.parametrize(
    "settings",
    [
        LAYERS | {"modules_to_save": BOTH},
        LAYERS | {"modules_to_save": ["embed_tokens"]},
        LAYERS,
        LAYERS | {"trainable_token_indices": [*OTHER_ROWS, 531]},
        LAYERS | {"modules_to_save": BOTH, "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_a_vocabulary_that_has_grown_comes_with_the_adapter(base: Path, tmp_path: Path, settings: dict[str, Any]):
    expected = trained(base, tmp_path / "adapter", num_added=3, **settings)
    model = read_merged(base, tmp_path / "adapter", tmp_path / "merged")
    assert model.config.vocab_size == 533
    assert_same_logits(logits_of(model), expected)


def test_a_grown_vocabulary_without_its_head_is_named_and_not_guessed(base: Path, tmp_path: Path):
    # PEFT saves the embeddings alone here; the head's new rows are in no file unless the base is tied.
    expected = trained(base, tmp_path / "adapter", num_added=3, target_modules=["k_proj", "embed_tokens"])
    if is_tied(base):
        ours = logits_of(read_merged(base, tmp_path / "adapter", tmp_path / "merged"))
        assert_same_logits(ours, expected)
        return
    with pytest.raises(CheckpointError, match=r"533 rows, and no lm_head\.weight; the base has 530.*modules_to_save"):
        merged(Checkpoint.open(base).source(), open_adapter(tmp_path / "adapter"))


def test_the_tokenizer_beside_the_adapter_goes_with_its_vocabulary(base: Path, tmp_path: Path):
    import transformers

    trained(base, tmp_path / "adapter", num_added=3, modules_to_save=BOTH, target_modules=["k_proj"])
    theirs = transformers.AutoTokenizer.from_pretrained(base)
    theirs.add_special_tokens({"additional_special_tokens": ["<|mark|>"]})
    theirs.save_pretrained(tmp_path / "adapter")
    source = merged(Checkpoint.open(base).source(), open_adapter(tmp_path / "adapter"))
    assert source.tokenizer and source.tokenizer.special("mark") == 530


def test_tokens_that_were_added_on_rows_of_padding_come_with_the_adapter(tmp_path: Path):
    import transformers

    (tmp_path / "base").mkdir()
    padded = Llama(replace(random_llama().config, vocab_size=536))
    padded.initialize(0)
    save_checkpoint(tmp_path / "base", padded, tokenizer())
    trained(tmp_path / "base", tmp_path / "adapter", **LAYERS, trainable_token_indices=[7, 530])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "adapter")
    source = merged(Checkpoint.open(tmp_path / "base").source(), open_adapter(tmp_path / "adapter"))
    assert source.tokenizer and source.tokenizer.vocab_size == 530
    theirs.add_special_tokens({"additional_special_tokens": ["<|mark|>"]})
    theirs.save_pretrained(tmp_path / "adapter")
    source = merged(Checkpoint.open(tmp_path / "base").source(), open_adapter(tmp_path / "adapter"))
    assert source.tokenizer and source.tokenizer.special("mark") == 530 and source.config.vocab_size == 536


def test_rows_that_do_not_fit_are_refused(base: Path, tmp_path: Path):
    trained(base, tmp_path / "adapter", trainable_token_indices=ROWS, target_modules=["k_proj"])
    edit_json(tmp_path / "adapter" / CONFIG_NAME, lambda raw: raw.update(trainable_token_indices=[*ROWS, 999]))
    with pytest.raises(CheckpointError, match=r"for 3 ids up to 999; expected a row of 48 numbers.*below 530"):
        merged(Checkpoint.open(base).source(), open_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize("settings", [VARIANTS["LoRA of the head"][0], VARIANTS["copy of the embeddings"][0]], ids=str)
def test_tables_are_neither_served_nor_trained_on_beside_a_tied_base(
    base: Path, tmp_path: Path, settings: dict[str, Any]
):
    trained(base, tmp_path / "adapter", **settings)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_NAME)
    bare = {key: tensor for key, tensor in tensors.items() if "base_layer" not in key}
    save_file(bare, tmp_path / "adapter" / WEIGHTS_NAME)
    adapter, config = open_adapter(tmp_path / "adapter"), Checkpoint.open(base).config
    with pytest.raises(CheckpointError, match=r"(lm_head|embed_tokens).*run the adapter beside a base.*puna merge"):
        require_runnable(adapter, config)
    if is_tied(base) or "modules_to_save" in settings:
        with pytest.raises(CheckpointError, match=r"(lm_head|embed_tokens).*puna merge.*training can start from that"):
            require_trainable(adapter, config)
    else:
        require_trainable(adapter, config)
