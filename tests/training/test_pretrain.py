"""The one loop: what it reads, what it minimizes, at which rate, and what it leaves behind."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from puna.data.dataset import Dataset
from puna.data.packing import Packer, Position
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.attend import packed_attend
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import PunaError
from puna.training.loop.optimizer import learning_rate
from puna.training.objectives.next_token import NextToken
from puna.training.reports.plot import plot_losses
from puna.training.settings import Optim

Perform = Callable[..., bool]


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run_metrics.jsonl").read_text().splitlines()]


def num_targets(data: Path, tokenizer: Path) -> int:
    """Count by hand the tokens that an epoch of pre-training predicts."""
    chat, dataset = ChatFormat(Tokenizer.load(tokenizer)), Dataset([data])
    rows = (dataset[index] for index in range(len(dataset)))
    ids = (chat.encode(row).ids if isinstance(row, Conversation) else chat.document(row.text) for row in rows)
    return sum(len(each) - 1 for each in ids)


def test_the_learning_rate_rises_by_steps_and_falls_by_the_share_done():
    optim = Optim(lr=0.5, warmup_steps=4, final_lr_share=0.1)
    rates = [learning_rate(optim, step, done=step / 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3) and rates[4] == pytest.approx(0.5, rel=0.01)
    assert all(one < two for one, two in pairwise(rates[:5])) and all(one > two for one, two in pairwise(rates[4:]))
    assert learning_rate(optim, 1000, done=0.5) == pytest.approx(0.5 * 0.55)
    assert learning_rate(optim, 1000, done=1.0) == learning_rate(optim, 1000, done=1.2) == pytest.approx(0.05)
    assert learning_rate(Optim(lr=0.5, warmup_steps=0), 0, done=0.0) == 0.5


def test_steps_are_adamw_as_it_is_defined(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path, checkpoint_path: Path, dataset_path: Path
):
    optim = {"lr": 0.01, "warmup_steps": 1, "weight_decay": 0.5, "clip": 0.2, "beta1": 0.8, "beta2": 0.9}
    settings = {**training, "start": str(checkpoint_path), "size": None, "tokenizer": None, "optim": optim, "steps": 3}
    perform_stage("pretrain", tmp_path / "out", **settings)
    checkpoint = Checkpoint.open(checkpoint_path)
    model, objective = checkpoint.load(), NextToken(ChatFormat(checkpoint.tokenizer()), True, False)
    packer = Packer(
        Dataset([dataset_path]), objective.encode, seed=0, batch_tokens=512, context=256, is_cut=objective.is_cut
    )
    position, moments = Position(), {name: (torch.zeros(()), torch.zeros(())) for name, _ in model.named_parameters()}
    for step in range(3):
        batch, position = packer.next(position)
        hidden = model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths))
        F.cross_entropy(model.logits(hidden), batch.targets_T).backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
        rate = 0.01 * min(1, (step + 1) / 2) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / 3)) / 2)
        assert norm > 0.2, "the gradient is clipped"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = gradients[name] * 0.2 / norm
                first, second = moments[name]
                first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
                moments[name] = first, second
                parameter.mul_(1 - rate * 0.5 if parameter.dim() > 1 else 1)
                mean, square = first / (1 - 0.8 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
                parameter.sub_(rate * mean / (square.sqrt() + 1e-8))
                parameter.grad = None
    trained = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[f"model.{name}"], parameter.detach(), atol=1e-5, rtol=1e-4)


def test_it_learns_a_small_text_by_heart(perform_stage: Perform, training: dict[str, Any], tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "documents.jsonl").write_text(
        json.dumps({"text": "We open at nine and close at six.", "id": "1"})
    )
    size = {"dim": 32, "hidden_dim": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    optim = {"lr": 0.02, "warmup_steps": 5, "weight_decay": 0.0}
    settings = {**training, "data": [str(tmp_path / "data")], "size": size, "steps": 100, "optim": optim}
    perform_stage("pretrain", tmp_path / "out", **settings)
    rows = metrics(tmp_path / "out")
    assert rows[0]["loss"] == pytest.approx(math.log(560), abs=0.3)
    assert rows[-1]["loss"] < 0.1
    assert [row["step"] for row in rows] == list(range(1, 101)) and all(row["tokens_per_s"] > 0 for row in rows)


def test_epochs_read_every_token_exactly_that_often(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path, dataset_path: Path, tokenizer_path: Path
):
    total = num_targets(dataset_path, tokenizer_path)
    for name, batch_tokens, accumulate in (("one", 256, 1), ("two", 300, 3), ("three", 100_000, 2)):
        more = {"steps": None, "epochs": 2, "batch_tokens": batch_tokens, "accumulate": accumulate}
        perform_stage("pretrain", tmp_path / name, **{**training, **more})
        assert metrics(tmp_path / name)[-1]["tokens"] == 2 * total
    assert len(metrics(tmp_path / "three")) == 1


def test_steps_are_optimizer_steps_however_many_batches_each(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path
):
    perform_stage("pretrain", tmp_path / "out", **{**training, "steps": 4, "accumulate": 3, "batch_tokens": 256})
    rows = metrics(tmp_path / "out")
    assert len(rows) == 4 and 2 * 256 < rows[0]["tokens"] <= 3 * 256


def test_the_picture_of_the_losses_is_a_png(perform_stage: Perform, training: dict[str, Any], tmp_path: Path):
    perform_stage("pretrain", tmp_path / "out", **training, validation=training["data"])
    picture = (tmp_path / "out" / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 5_000


def test_a_step_without_a_loss_is_left_out_of_the_picture(tmp_path: Path):
    rows = [{"step": 1, "tokens": 5, "loss": 2.0, "validation_loss": 2.5}, {"step": 2, "tokens": 9, "loss": None}]
    for name, shown in (("all.png", rows), ("none.png", rows[1:]), ("no_rows.png", [])):
        plot_losses(shown, tmp_path / name, title="sft")
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "all.png").read_bytes() != (tmp_path / "none.png").read_bytes()


def test_the_validation_loss_is_the_mean_over_the_validation_data_without_drills(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path, dataset_path: Path
):
    validation = dataset_path / "documents.jsonl"
    perform_stage(
        "pretrain", tmp_path / "out", **{**training, "steps": 20, "drill_share": 0.3, "validation": [str(validation)]}
    )
    rows = [row for row in metrics(tmp_path / "out") if "validation_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    checkpoint = Checkpoint.open(tmp_path / "out")
    model, chat = checkpoint.load(), ChatFormat(checkpoint.tokenizer())
    total = count = 0.0
    for line in validation.read_text().splitlines():
        ids = torch.tensor(chat.document(json.loads(line)["text"]))
        hidden = model(ids[:-1], torch.arange(len(ids) - 1), packed_attend([len(ids) - 1]))
        total += F.cross_entropy(model.logits(hidden), ids[1:], reduction="sum").item()
        count += len(ids) - 1
    assert rows[-1]["validation_loss"] == pytest.approx(total / count, rel=1e-5)
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]


def test_a_run_that_ends_in_its_warm_up_says_so(perform_stage: Perform, training: dict[str, Any], tmp_path: Path):
    for warmup_steps, is_said in ((3, False), (4, True)):
        out = tmp_path / f"out{warmup_steps}"
        perform_stage("pretrain", out, **{**training, "steps": 4, "optim": {"lr": 1e-3, "warmup_steps": warmup_steps}})
        log = tmp_path / ".runs" / out.name / "log.txt"
        said = log.read_text() if log.exists() else ""
        assert ("ended after step 4 of 4 steps of warm-up" in said) == is_said


def test_equal_seeds_give_equal_weights_and_other_seeds_others(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path
):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        perform_stage("pretrain", tmp_path / name, **training, seed=seed)
    one, same, other = (artifact.hash_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other"))
    assert one == same != other
    assert artifact.content_hash(tmp_path / "one") == artifact.content_hash(tmp_path / "same")


def test_bfloat16_learns_nearly_as_float32_does(perform_stage: Perform, training: dict[str, Any], tmp_path: Path):
    for precision in ("float32", "bfloat16"):
        perform_stage("pretrain", tmp_path / precision, **{**training, "precision": precision})
        weights = load_file(tmp_path / precision / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    one, other = (metrics(tmp_path / precision)[-1]["loss"] for precision in ("float32", "bfloat16"))
    assert one != other and one == pytest.approx(other, rel=0.02)


def test_accumulated_halves_make_the_step_of_the_whole(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path, tokenizer_path: Path
):
    text = "Store {} opens at {}, not before."
    (tmp_path / "data").mkdir()
    rows = [{"text": text.format(n % 10, (n + 3) % 10), "id": str(n)} for n in range(16)]
    (tmp_path / "data" / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    length = num_targets(tmp_path / "data", tokenizer_path) // 16
    for name, batch, accumulate in (("whole", 8, 1), ("halves", 4, 2)):
        shape = {"context": length, "batch_tokens": batch * length, "accumulate": accumulate, "steps": 8}
        perform_stage("pretrain", tmp_path / name, **{**training, **shape, "data": [str(tmp_path / "data")]})
    for one, two in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "halves"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5) and one["tokens"] == two["tokens"]
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves")]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 1e-5


def test_packed_examples_have_the_losses_they_have_alone(checkpoint_path: Path, dataset_path: Path):
    checkpoint = Checkpoint.open(checkpoint_path)
    model, objective = checkpoint.load(), NextToken(ChatFormat(checkpoint.tokenizer()), False, False)

    def losses(batch_tokens: int) -> tuple[int, float]:
        dataset = Dataset([dataset_path], objective.kinds)
        packer = Packer(
            dataset, objective.encode, seed=0, batch_tokens=batch_tokens, context=batch_tokens, is_cut=objective.is_cut
        )
        position, total, count = Position(), 0.0, 0
        while position.epoch == 0:
            batch, position = packer.next(position)
            hidden = model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths))
            total += objective.losses(model, hidden, batch)["loss"].item()
            count += 1
        return count, total

    (one_batch, packed), (many_batches, alone) = losses(5_000), losses(250)
    assert one_batch == 1 and many_batches == 12
    assert packed == pytest.approx(alone, rel=1e-5)


def test_what_a_user_sets_is_used_or_refused(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path, checkpoint_path: Path
):
    widths = training["size"]
    for change, message in [
        ({"size": "demo-studnet"}, "size = 'demo-studnet'"),
        ({"size": {**widths, "num_heads": 3}}, "multiple of num_heads = 3"),
        ({"start": str(checkpoint_path)}, "exactly one of 'start'"),
        ({"start": str(checkpoint_path), "size": None}, "a checkpoint has its own"),
        ({"tokenizer": None}, "'tokenizer' beside 'size'"),
        ({"size": "demo-student", "context": 2048, "batch_tokens": 2048}, "at most 1024"),
        ({"epochs": 1}, "exactly one of 'steps' and 'epochs'"),
        ({"batch_tokens": 128}, "at least context"),
        ({"data": []}, "empty list"),
    ]:
        with pytest.raises(PunaError, match=message):
            perform_stage("pretrain", tmp_path / "out", **{**training, **change})
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_and_a_model_are_made_from_the_same_data(
    perform_stage: Perform, training: dict[str, Any], tmp_path: Path
):
    perform_stage("tokenizer", tmp_path / "tokenizer", data=training["data"], vocab_size=540, max_rows=5)
    assert "learned from 5 rows" in (tmp_path / ".runs" / "tokenizer" / "log.txt").read_text()
    perform_stage("pretrain", tmp_path / "model", **{**training, "tokenizer": str(tmp_path / "tokenizer")})
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert checkpoint.config.vocab_size == 540 and checkpoint.config.max_context == training["context"]
    assert checkpoint.tokenizer().fingerprint == Tokenizer.load(tmp_path / "tokenizer").fingerprint
