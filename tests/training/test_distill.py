"""A student learns the probabilities that its teacher gives: the loss is the formula, and falls."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Packer, Position
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.train import train_tokenizer
from puna.model.attend import packed_attend
from puna.model.llama import Llama
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ConfigError
from puna.training.distill import Config, live_teacher
from puna.training.objectives.distillation.cross_tokenizer import CrossTokenizer, live_knowledge, span_divergence
from puna.training.objectives.distillation.live_teacher import LiveTeacher
from puna.training.objectives.distillation.on_policy import Answering, OnPolicyTeacher, Pool
from puna.training.teacher.local import LocalTeacher

pytestmark = pytest.mark.usefixtures("no_picture")

Perform = Callable[..., bool]
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def teacher_path(perform_stage: Perform, training: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of twice the student's width that has learned the dataset a little."""
    path = tmp_path_factory.mktemp("teacher") / "out"
    size = {**training["size"], "dim": 32, "hidden_dim": 64}
    perform_stage("sft", path, **{**training, "size": size, "steps": 40, "optim": {"lr": 0.02, "warmup_steps": 2}})
    return path


def objective_for(student: Path, teacher: Path, dataset: Path, **settings: Any) -> tuple[Llama, LiveTeacher, Batch]:
    """Open student and teacher, and read the first batch of the dataset."""
    table = {
        "data": [str(dataset)],
        "init_from": str(student),
        "teacher": str(teacher),
        "steps": 1,
        "precision": "float32",
    }
    config = parse_config(Config, {**table, **settings}, where="distill")
    opened = Checkpoint.open(student)
    chat, model = ChatFormat(opened.tokenizer()), Checkpoint.open(teacher).load()
    objective = live_teacher(config, chat.tokenizer, model)
    rows = Dataset([dataset], objective.kinds)
    packer = Packer(rows, objective.encode, seed=0, batch_tokens=600, context=300, is_cut=objective.is_cut)
    return opened.load(), objective, packer.next(Position())[0]


def hidden_of(model: Llama, batch: Batch) -> torch.Tensor:
    return model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths))


def logits_of(model: Llama, batch: Batch) -> torch.Tensor:
    return model.logits(hidden_of(model, batch)[batch.trained_T])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("every_token", [False, True])
def test_the_loss_is_the_formula(
    checkpoint_path: Path, teacher_path: Path, dataset_path: Path, temperature: float, weight: float, every_token: bool
):
    settings = {"temperature": temperature, "teacher_weight": weight, "every_token": every_token}
    student, objective, batch = objective_for(checkpoint_path, teacher_path, dataset_path, **settings)
    assert batch.trained_T.all() == every_token
    with torch.no_grad():
        logits_MV = logits_of(student, batch)
        losses = objective.losses(student, hidden_of(student, batch), batch)
        teacher_logits_MV = logits_of(objective.teacher, batch)
    divergence = cross_entropy = 0.0
    targets = batch.targets_T[batch.trained_T].tolist()
    for student_V, teacher_V, target in zip(logits_MV.double(), teacher_logits_MV.double(), targets, strict=True):
        p_V, q_V = torch.softmax(teacher_V / temperature, 0), torch.softmax(student_V / temperature, 0)
        divergence += (p_V * (p_V / q_V).log()).sum().item()
        cross_entropy -= torch.softmax(student_V, 0)[target].log().item()
    assert losses["kl_loss"].item() == pytest.approx(divergence, rel=1e-4)
    assert losses["token_loss"].item() == pytest.approx(cross_entropy, rel=1e-5)
    expected = weight * temperature**2 * divergence + (1 - weight) * cross_entropy
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_gradient(teacher_path: Path, dataset_path: Path):
    student, objective, batch = objective_for(teacher_path, teacher_path, dataset_path, teacher_weight=1.0)
    losses = objective.losses(student, hidden_of(student, batch), batch)
    assert abs(losses["kl_loss"].item()) < 1e-3 and losses["token_loss"].item() > 1
    losses["loss"].backward()
    assert (
        max(parameter.grad.abs().max().item() for parameter in student.parameters() if parameter.grad is not None)
        < 1e-3
    )
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_the_student_comes_nearer_to_its_teacher(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path
):
    settings = {**training, "steps": 20, "teacher": str(teacher_path), "teacher_weight": 1.0}
    perform_stage("distill", tmp_path / "out", **settings)
    rows = [json.loads(line) for line in (tmp_path / "out" / "run_metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kl_loss"] < 0.9 * rows[0]["kl_loss"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"]["teacher"]["kind"] == "checkpoint"


def test_without_weight_on_the_teacher_it_is_plain_training(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path
):
    perform_stage("sft", tmp_path / "plain", **training)
    perform_stage("distill", tmp_path / "distilled", **training, teacher=str(teacher_path), teacher_weight=0.0)
    plain, distilled = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "distilled"))
    assert all(torch.equal(plain[name], distilled[name]) for name in plain)


def test_a_teacher_with_another_tokenizer_is_refused(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path
):
    text = "Quite different words, chosen by nobody in particular, give other pairs of letters to be merged first. "
    (tmp_path / "tokenizer").mkdir()
    train_tokenizer([text * 9], vocab_size=560, split_digits=True).save(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="has another tokenizer than the student"):
        perform_stage(
            "distill",
            tmp_path / "out",
            **{**training, "tokenizer": str(tmp_path / "tokenizer")},
            teacher=str(teacher_path),
        )


def test_the_same_command_with_a_changed_teacher_trains_again(
    perform_stage: Perform, training: Settings, teacher_path: Path, checkpoint_path: Path, tmp_path: Path
):
    shutil.copytree(checkpoint_path, tmp_path / "teacher")
    settings = {**training, "teacher": str(tmp_path / "teacher"), "steps": 1}
    assert perform_stage("distill", tmp_path / "out", **settings)
    assert not perform_stage("distill", tmp_path / "out", **settings)
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(teacher_path, tmp_path / "teacher")
    assert perform_stage("distill", tmp_path / "out", **settings)


def label(perform_stage: Perform, teacher: Path, dataset: Path, out: Path, **settings: Any) -> Path:
    table = {"data": [str(dataset)], "teacher": str(teacher), "max_length": 256, "precision": "float32", "top_k": 560}
    perform_stage("label", out, **{**table, **settings})
    return out


def curve(path: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (path / "run_metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_labels_of_the_whole_vocabulary_give_the_live_teachers_curve(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path, kind: str, temperature: float
):
    told = {"divergence": {"kind": kind}, "temperature": temperature, "teacher_weight": 0.7}
    (data,) = map(Path, training["data"])
    labels = label(perform_stage, teacher_path, data, tmp_path / "labels", temperature=temperature)
    perform_stage("distill", tmp_path / "live", **training, **told, teacher=str(teacher_path))
    perform_stage("distill", tmp_path / "stored", **without_data(training), **told, labels=str(labels))
    for name in ("loss", "kl_loss", "token_loss"):
        assert curve(tmp_path / "stored", name) == pytest.approx(curve(tmp_path / "live", name), rel=2e-3)


def test_labels_of_64_tokens_of_560_give_nearly_the_live_teachers_curve(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path
):
    (data,) = map(Path, training["data"])
    labels = label(perform_stage, teacher_path, data, tmp_path / "labels", top_k=64)
    perform_stage("distill", tmp_path / "live", **training, teacher=str(teacher_path))
    perform_stage("distill", tmp_path / "stored", **without_data(training), labels=str(labels))
    stored, live = (curve(tmp_path / name, "loss") for name in ("stored", "live"))
    # What is lost is how the teacher divides the 496 other tokens: the divergence of buckets is never greater.
    assert stored == pytest.approx(live, rel=0.02)
    assert all(few <= whole * 1.001 for few, whole in zip(stored, live, strict=True))


def test_a_student_learns_from_labels(perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path):
    (data,) = map(Path, training["data"])
    labels = label(perform_stage, teacher_path, data, tmp_path / "labels", top_k=16)
    settings = {**without_data(training), "steps": 20, "labels": str(labels), "teacher_weight": 1.0}
    perform_stage("distill", tmp_path / "out", **settings)
    losses = curve(tmp_path / "out", "kl_loss")
    assert losses[-1] < 0.9 * losses[0]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"]["labels"]["kind"] == "labels"


def without_data(training: Settings) -> Settings:
    return {name: value for name, value in training.items() if name != "data"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 2.0}, "temperature = 2.0; expected 1.0, as in the labels"),
        ({"every_token": True}, "every_token = True; expected False, as in the labels"),
        ({"fresh_identifiers": True}, "`puna label` draws them"),
        ({"data": ["x"]}, "'data' beside 'teacher', and only there"),
        ({"labels": None}, "exactly one of 'teacher'"),
    ],
)
def test_labels_that_do_not_fit_what_is_asked_are_refused(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path, change: Settings, message: str
):
    (data,) = map(Path, training["data"])
    labels = label(perform_stage, teacher_path, data, tmp_path / "labels", top_k=4)
    settings = {**without_data(training), "labels": str(labels), **change}
    with pytest.raises(ConfigError, match=message):
        perform_stage("distill", tmp_path / "out", **{n: value for n, value in settings.items() if value is not None})


def test_labels_of_another_tokenizer_are_refused(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path
):
    (data,) = map(Path, training["data"])
    labels = label(perform_stage, teacher_path, data, tmp_path / "labels", top_k=4)
    text = "Quite different words, chosen by nobody in particular, give other pairs of letters to be merged first. "
    (tmp_path / "tokenizer").mkdir()
    train_tokenizer([text * 9], vocab_size=560, split_digits=True).save(tmp_path / "tokenizer")
    settings = {**without_data(training), "tokenizer": str(tmp_path / "tokenizer"), "labels": str(labels)}
    with pytest.raises(ConfigError, match="were made with another tokenizer than the student's"):
        perform_stage("distill", tmp_path / "out", **settings)


def kl_on_data(student: Path, teacher: Path, dataset: Path) -> float:
    """Return KL(teacher || student) a token on the dataset."""
    model, objective, batch = objective_for(student, teacher, dataset, teacher_weight=1.0)
    with torch.no_grad():
        return objective.losses(model, hidden_of(model, batch), batch)["kl_loss"].item() / batch.trained_T.sum().item()


ON_POLICY = {"share": 1.0, "interval": 4, "answers": 8, "max_tokens": 12}


def test_a_student_learns_from_its_teacher_on_its_own_answers_alone(
    perform_stage: Perform, training: Settings, teacher_path: Path, checkpoint_path: Path, tmp_path: Path
):
    settings = {name: value for name, value in training.items() if name not in ("size", "tokenizer")}
    settings |= {"init_from": str(checkpoint_path), "teacher": str(teacher_path), "steps": 12, "on_policy": ON_POLICY}
    perform_stage("distill", tmp_path / "out", **settings, teacher_weight=1.0)
    assert curve(tmp_path / "out", "own_share") == [1.0] * 12
    assert curve(tmp_path / "out", "token_loss") == pytest.approx([0.0] * 12, abs=1e-4)
    (data,) = map(Path, training["data"])
    before, after = (kl_on_data(path, teacher_path, data) for path in (checkpoint_path, tmp_path / "out"))
    assert after < 0.95 * before


def test_on_policy_mixed_in_leaves_the_datas_cross_entropy_as_it_is(
    checkpoint_path: Path, teacher_path: Path, dataset_path: Path
):
    student, objective, batch = objective_for(checkpoint_path, teacher_path, dataset_path, teacher_weight=0.4)
    mixed = OnPolicyTeacher(objective, share=0.5, pool=Pool())
    half_T = torch.arange(len(batch.tokens_T)) % 2 == 0
    marked = replace(batch, columns={"is_own": half_T})
    with torch.no_grad():
        plain = objective.losses(student, hidden_of(student, batch), batch)
        found = mixed.losses(student, hidden_of(student, batch), marked)
        logits_MV = logits_of(student, batch)
    is_own_M, targets_M = half_T[batch.trained_T], batch.targets_T[batch.trained_T]
    left_out = torch.nn.functional.cross_entropy(logits_MV[is_own_M], targets_M[is_own_M], reduction="sum").item()
    assert found["kl_loss"].item() == pytest.approx(plain["kl_loss"].item())
    assert found["token_loss"].item() == pytest.approx(plain["token_loss"].item() - left_out, rel=1e-5)
    assert found["loss"].item() == pytest.approx(plain["loss"].item() - 0.6 * left_out, rel=1e-5)


def test_a_killed_on_policy_run_ends_with_the_same_weights(
    perform_stage: Perform,
    training: Settings,
    teacher_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    settings = {
        **training,
        "teacher": str(teacher_path),
        "on_policy": {**ON_POLICY, "share": 0.5},
        "save_minutes": 1e-9,
    }
    perform_stage("distill", tmp_path / "whole", **settings)
    answer = Answering.fill

    def killed(self: Answering, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        answer(self, step)

    monkeypatch.setattr(Answering, "fill", killed)
    with pytest.raises(KeyboardInterrupt):
        perform_stage("distill", tmp_path / "out", **settings)
    monkeypatch.setattr(Answering, "fill", answer)
    perform_stage("distill", tmp_path / "out", **settings)
    whole, out = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], out[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_policy": {"max_tokens": 256}}, "less than max_length = 256"),
        ({"on_policy": {"max_tokens": 250}}, "questions that leave no room"),
        ({"on_policy": {}, "divergence": {"kind": "spans"}}, "neither on_policy nor"),
    ],
)
def test_on_policy_settings_that_cannot_be_are_refused(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path, change: Settings, message: str
):
    with pytest.raises(ConfigError, match=message):
        perform_stage("distill", tmp_path / "out", **training, teacher=str(teacher_path), **change)


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts the dataset's text otherwise."""
    text = "Your parcel is where? Order it, my order is on; parcel your order, where is my parcel. find_order "
    path = tmp_path_factory.mktemp("other")
    train_tokenizer([text * 9], vocab_size=540, split_digits=False).save(path)
    return path


def test_span_divergence_is_the_formula():
    p_S, q_S = torch.tensor([0.9, 0.2, 0.5, 1.0]), torch.tensor([0.3, 0.8, 0.5, 0.7])
    found = span_divergence(p_S.log(), q_S.log()).item()
    expected = sum(
        sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)
        for p, q in zip(p_S.tolist(), q_S.tolist(), strict=True)
    )
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_student_with_another_tokenizer_learns_from_its_teacher_and_alike_from_labels(
    perform_stage: Perform, training: Settings, teacher_path: Path, other_tokenizer: Path, tmp_path: Path
):
    settings = {**training, "tokenizer": str(other_tokenizer), "divergence": {"kind": "spans"}, "steps": 15}
    perform_stage("distill", tmp_path / "live", **settings, teacher=str(teacher_path), teacher_weight=1.0)
    losses = curve(tmp_path / "live", "kl_loss")
    assert losses[-1] < 0.8 * losses[0]
    assert all(0.5 < share <= 1 for share in curve(tmp_path / "live", "aligned_share"))
    (data,) = map(Path, training["data"])
    labels = label(perform_stage, teacher_path, data, tmp_path / "labels", top_k=1)
    perform_stage("distill", tmp_path / "stored", **without_data(settings), labels=str(labels), teacher_weight=1.0)
    assert curve(tmp_path / "stored", "kl_loss")[:3] == pytest.approx(losses[:3], rel=0.01)


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("change", [{"on_policy": ON_POLICY}, {"divergence": {"kind": "spans"}}])
def test_the_record_tells_whether_every_token_is_a_target(
    perform_stage: Perform, training: Settings, teacher_path: Path, tmp_path: Path, every_token: bool, change: Settings
):
    """Rows of both objectives stay whole, but that says nothing about the loss mask."""
    settings = {**training, **change, "steps": 1, "every_token": every_token}
    perform_stage("distill", tmp_path / "out", **settings, teacher=str(teacher_path))
    facts = json.loads((tmp_path / "out" / "run_facts.json").read_text())
    assert facts["is_every_token"] == every_token


def test_a_student_with_its_teachers_tokenizer_has_a_span_for_each_token(
    checkpoint_path: Path, dataset_path: Path, teacher_path: Path
):
    chat = ChatFormat(Checkpoint.open(checkpoint_path).tokenizer())
    teacher = Checkpoint.open(teacher_path).load()
    asked = LocalTeacher(teacher, None, dtype=torch.float32, top_k=1, temperature=1.0, context=256, batch_tokens=256)
    objective = CrossTokenizer(chat, False, False, chat, live_knowledge(asked), 1.0)
    rows = Dataset([dataset_path], objective.kinds)
    packer = Packer(rows, objective.encode, seed=0, batch_tokens=600, context=300, is_cut=objective.is_cut)
    batch, _ = packer.next(Position())
    with torch.no_grad():
        found = objective.losses(teacher, hidden_of(teacher, batch), batch)
    assert found["teacher_loss"].item() == pytest.approx(found["token_loss"].item(), rel=1e-3)
    assert abs(found["kl_loss"].item()) < 0.02
    assert (batch.columns["span"][batch.trained_T] >= 0).all()
    assert found["aligned_share"].item() == objective.num_counted(batch)
