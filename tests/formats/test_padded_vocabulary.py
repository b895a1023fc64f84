"""Embeddings with more rows than tokens, as padding to a multiple leaves them: rows without a token are left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from grown_checkpoint import add_rows, entry, grow

from puna.data.dataset import Dataset
from puna.data.labels import LabelHeader, read_header
from puna.data.packing import Batch, Packer, Position
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.sampling.sampler import trim_padded_vocabulary
from puna.pipeline.artifacts.artifact import read_receipts
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ConfigError
from puna.testing.tiny_checkpoint import edit_json, save, tokenizer
from puna.training.distill import Config, require_fit
from puna.training.objectives.distillation.divergence import Divergence
from puna.training.objectives.distillation.live_teacher import LiveTeacher
from puna.training.objectives.distillation.stored_labels import StoredLabels
from puna.training.teacher.local import LocalTeacher
from puna.training.teacher.teacher import Item

Perform = Callable[..., bool]
# Rows that would have most of the mass if they counted.
FILL = 0.5
TRAINING: dict[str, Any] = {"epochs": 1, "context": 128, "batch_tokens": 256, "precision": "float32"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 0, 6 and 46 rows that no token belongs to."""
    path = tmp_path_factory.mktemp("padded")
    for rows in (0, 6, 46):
        (path / str(rows)).mkdir()
        save(path / str(rows))
        add_rows(path / str(rows), rows, fill=FILL)
    said = [{"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "jumps over the lazy dog"}]
    (path / "data").mkdir()
    (path / "data" / "conversations.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 4)
    return path


def live(path: Path, **settings: Any) -> LiveTeacher:
    teacher = Checkpoint.open(path).load()
    told = {"temperature": 1.0, "teacher_weight": 0.7, "divergence": Divergence()} | settings
    return LiveTeacher(
        ChatFormat(tokenizer()), False, False, told["divergence"], teacher, torch.float32, told["temperature"],
        told["teacher_weight"],
    )  # fmt: skip


def batch_of(objective: Any, path: Path) -> Batch:
    dataset = Dataset([path], objective.kinds)
    packer = Packer(dataset, objective.encode, seed=0, batch_tokens=128, context=64, is_cut=objective.is_cut)
    return packer.next(Position())[0]


def losses_of(objective: Any, student: Path, data: Path) -> dict[str, float]:
    model, batch = Checkpoint.open(student).load(), batch_of(objective, data)
    with torch.no_grad():
        found = objective.losses(model, batch.hidden_states(model, torch.float32), batch)
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("teacher", "student"), [(6, 0), (0, 46), (6, 46)])
def test_the_divergence_is_over_the_tokens(models: Path, kind: Any, temperature: float, teacher: int, student: int):
    settings = {"divergence": Divergence(kind=kind), "temperature": temperature}
    plain = losses_of(live(models / "0", **settings), models / "0", models / "data")
    padded = losses_of(live(models / str(teacher), **settings), models / str(student), models / "data")
    for name in ("kl_loss", "teacher_loss", "entropy", "teacher_entropy", "label_entropy"):
        assert padded[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-3), name
    if not student:
        assert padded["loss"] == pytest.approx(plain["loss"], rel=1e-4)


def test_cross_entropy_is_over_all_rows_as_in_plain_training(models: Path):
    from puna.training.objectives.next_token import NextToken

    distilled = losses_of(live(models / "0"), models / "6", models / "data")
    plain = losses_of(NextToken(ChatFormat(tokenizer()), False, False), models / "6", models / "data")
    assert distilled["token_loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_labels_of_a_padded_teacher_equal_those_of_a_plain_one(models: Path):
    chat = ChatFormat(tokenizer())
    row = Dataset([models / "data"])[0]
    assert isinstance(row, Conversation)
    ids, mask = chat.encode(row)
    found = []
    for rows in (0, 6, 46):
        size = {"top_k": 9, "temperature": 1.0, "context": 64, "batch_tokens": 64}
        teacher = LocalTeacher(
            Checkpoint.open(models / str(rows)).load(), tokenizer(), dtype=torch.float32, **size
        )  # fmt: skip
        (labelled,) = teacher.label([Item(row, ids, mask)], lambda _: None)
        found.append(labelled.labels)
    for each in found[1:]:
        assert np.array_equal(each.top_ids_NK, found[0].top_ids_NK)
        for name in ("top_NK", "tail_N", "chosen_N"):
            assert np.allclose(getattr(each, name), getattr(found[0], name), atol=2e-3)


def test_padded_teachers_and_students_meet_through_labels(
    models: Path, tmp_path: Path, perform_stage: Perform, no_picture: None
):
    for teacher, student in ((6, 0), (0, 6), (46, 6)):
        labels = tmp_path / f"labels-{teacher}-{student}"
        given = {"teacher": str(models / str(teacher)), "data": [str(models / "data")], "precision": "float32"}
        perform_stage("label", labels, **given, context=128)
        assert read_header(labels).vocab_size == 530
        start = {"start": str(models / str(student)), "labels": str(labels)}
        perform_stage("distill", tmp_path / f"out-{teacher}-{student}", **start, **TRAINING)
    chat, data = ChatFormat(tokenizer()), tmp_path / "labels-6-0"
    objective = StoredLabels(chat, False, False, Divergence(), 1.0, 0.7)
    plain, padded = (losses_of(objective, models / rows, data) for rows in ("0", "46"))
    for name in ("kl_loss", "entropy"):
        assert padded[name] == pytest.approx(plain[name], rel=1e-4)


def test_labels_that_counted_rows_without_a_token_are_refused(models: Path):
    header = LabelHeader("teacher", tokenizer().fingerprint, 536, 64, 1.0, False, 1, 1, 1, {})
    config = parse_config(Config, {"start": str(models / "0"), "labels": "labels", "steps": 1}, where="distill")
    with pytest.raises(ConfigError, match=r"536 token ids.*at most the tokenizer's 530.*Label again"):
        require_fit(config, header, tokenizer())


@pytest.mark.parametrize(
    "more", [{}, {"on_policy": {"answers": 2, "max_tokens": 8, "interval": 1}}, {"divergence": {"kind": "spans"}}]
)
def test_a_live_teacher_of_another_padding_teaches(
    models: Path, tmp_path: Path, perform_stage: Perform, no_picture: None, more: dict[str, Any]
):
    given = {"start": str(models / "6"), "teacher": str(models / "46"), "data": [str(models / "data")]}
    perform_stage("distill", tmp_path / "out", **given, **TRAINING, **more)
    assert Checkpoint.open(tmp_path / "out").config.vocab_size == 536


def test_an_id_between_tokens_that_no_token_has_is_never_sampled(tmp_path: Path):
    path = grow(tmp_path / "model", entry("<a>"), entry("<b>"), entry("<c>"))
    edit_json(path / "tokenizer.json", lambda raw: raw["added_tokens"].pop(-2))
    ours = Tokenizer.load(path)
    assert (ours.vocab_size, ours.unused_ids) == (533, (531,))
    logits_NV = trim_padded_vocabulary(torch.zeros(2, 540), ours)
    probs_NV = logits_NV.softmax(-1)
    assert probs_NV.shape == (2, 533) and not probs_NV[:, 531].any()
    sampler = LocalSampler(Checkpoint.open(path).load(), ours)
    found = sampler.complete([[1, 2]] * 8, [SamplingParams(64, 50.0, seed=seed, logprobs=3) for seed in range(8)])
    assert {done.finish_reason for done in found} == {"length"}
    assert 531 not in {token for done in found for token in done.ids}


def test_padding_survives_gguf_as_unused_tokens(models: Path, tmp_path: Path, perform_stage: Perform):
    perform_stage("export", tmp_path / "gguf", checkpoint=str(models / "6"), format="gguf", kind="F32")
    path = tmp_path / "gguf" / "model.gguf"
    fields = gguf.GGUFReader(path).fields
    assert set(fields["tokenizer.ggml.token_type"].contents()[530:]) == {gguf.TokenType.UNUSED}
    perform_stage("import", tmp_path / "back", source=str(path), licence="MIT")
    back = Checkpoint.open(tmp_path / "back")
    assert (back.config.vocab_size, back.tokenizer().vocab_size) == (536, 530)
    assert all(receipt.held for receipt in read_receipts(tmp_path / "back"))


def test_preferences_are_learned_on_a_padded_base(
    models: Path, tmp_path: Path, perform_stage: Perform, no_picture: None
):
    pair = {
        "prompt": [{"role": "user", "content": "the fox"}],
        "chosen": [{"role": "assistant", "content": "jumps"}],
        "rejected": [{"role": "assistant", "content": "the dog"}],
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "preferences.jsonl").write_text((json.dumps(pair) + "\n") * 4)
    start = {"start": str(models / "6"), "data": [str(tmp_path / "data")]}
    perform_stage("dpo", tmp_path / "out", **start, **TRAINING)
    assert Checkpoint.open(tmp_path / "out").config.vocab_size == 536
