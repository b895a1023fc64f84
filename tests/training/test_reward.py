"""The reward model: loss and gradients are the formula's and TRL's, transformers loads it, and it learns to prefer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_rows import row, write

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Packer, Position
from puna.data.preference import STRENGTHS, Preference
from puna.evaluation.tasks import Question
from puna.evaluation.tasks.reward_model import RewardModel
from puna.formats.chat.conversation import Conversation, Message
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.source import disk_name
from puna.model.attend import packed_attend
from puna.model.llama import Llama
from puna.model.reward import become_reward_model
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ChatError, CheckpointError, ConfigError
from puna.pipeline.run import Run
from puna.planning.doctor.examine import examine
from puna.training.objectives.reward import Reward

pytestmark = pytest.mark.usefixtures("no_picture")

Perform = Callable[..., bool]
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pairs") / "data", [row(n) for n in range(12)])


@pytest.fixture(scope="module")
def reward_path(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of random weights, its score far from zero."""
    path, checkpoint = tmp_path_factory.mktemp("reward"), Checkpoint.open(checkpoint_path)
    model = checkpoint.load()
    become_reward_model(model, seed=0)
    assert model.score is not None
    with torch.no_grad():
        model.score.weight.mul_(40)
    save_checkpoint(path, model, checkpoint.tokenizer())
    return path


@pytest.fixture
def settings(training: Settings, checkpoint_path: Path, pairs_path: Path) -> Settings:
    """Settings of a reward run that takes a moment."""
    start = {"data": [str(pairs_path)], "start": str(checkpoint_path), "size": None, "tokenizer": None}
    return {**training, **start, "optim": {"lr": 0.003, "warmup_steps": 2}}


def first_batch(objective: Reward, data: Path) -> Batch:
    rows = Dataset([data], objective.kinds)
    return Packer(rows, objective.encode, seed=0, batch_tokens=4000, context=200, is_cut=False).next(Position())[0]


def losses_of(objective: Reward, model: Llama, batch: Batch) -> dict[str, torch.Tensor]:
    return objective.losses(model, model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths)), batch)


def test_the_loss_is_the_formula_on_scores_that_are_read_alone(reward_path: Path, pairs_path: Path):
    judge = RewardModel.open(reward_path)
    objective = Reward(judge.chat, frozenset(STRENGTHS))
    batch = first_batch(objective, pairs_path)
    losses = losses_of(objective, judge.model, batch)
    loss = accuracy = margins = 0.0
    num_pairs = 0
    for preference in map(Preference.from_json, map(row, range(12))):
        ranked = [answer for answer in (preference.edited, preference.chosen, preference.rejected) if answer]
        scores = judge.score([preference.answered(answer) for answer in ranked])
        for place, better in enumerate(scores):
            for worse in scores[place + 1 :]:
                margin = torch.tensor(better - worse, dtype=torch.float64)
                loss += -torch.log(1 / (1 + torch.exp(-margin))).item()
                accuracy, margins, num_pairs = accuracy + (better > worse), margins + better - worse, num_pairs + 1
    assert objective.num_counted(batch) == num_pairs == 18
    assert losses["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert losses["margin"].item() == pytest.approx(margins, rel=1e-4)
    assert losses["accuracy"].item() == accuracy
    assert (losses["chosen_score"] - losses["rejected_score"]).item() == pytest.approx(margins, rel=1e-4)


def test_transformers_loads_it_and_gives_the_same_scores(reward_path: Path):
    from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        reward_path, dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(theirs, LlamaForSequenceClassification) and theirs.config.num_labels == 1
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    judge = RewardModel.open(reward_path)
    preferences = [Preference.from_json(row(n)) for n in range(3)]
    conversations = [each.answered(each.chosen) for each in preferences]
    with torch.no_grad():
        ids = [torch.tensor([judge.chat.encode(each).ids]) for each in conversations]
        expected = [theirs(input_ids=each).logits.item() for each in ids]
    assert judge.score(conversations) == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) > 0.1


def test_a_model_that_transformers_wrote_is_read(reward_path: Path, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(reward_path, dtype=torch.float32).save_pretrained(tmp_path)
    Checkpoint.open(reward_path, is_reward=True).tokenizer().save(tmp_path)
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "Good morning.")))
    assert RewardModel.open(tmp_path).score([conversation]) == RewardModel.open(reward_path).score([conversation])


def test_loss_and_gradients_are_those_of_trl(reward_path: Path, tmp_path: Path):
    trl = pytest.importorskip("trl")
    import datasets
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [{name: row(n)[name] for name in ("prompt", "chosen", "rejected")} for n in (1, 2, 3)]
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(reward_path, dtype=torch.float32),
        args=trl.RewardConfig(output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(reward_path),
    )
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    checkpoint = Checkpoint.open(reward_path, is_reward=True)
    model = checkpoint.load().train()
    objective = Reward(ChatFormat(checkpoint.tokenizer()), frozenset(STRENGTHS))
    ours = losses_of(objective, model, first_batch(objective, write(tmp_path / "data", rows)))["loss"] / 3
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[disk_name(name)], rtol=1e-3, atol=1e-6)


def test_it_learns_what_people_prefer_and_says_how_often_on_held_out_pairs(
    perform_stage: Perform, settings: Settings, tmp_path: Path
):
    held_out = write(tmp_path / "held_out", [row(n) for n in range(20, 29)])
    perform_stage("reward", tmp_path / "out", **{**settings, "steps": 15, "validation": [str(held_out)]})
    rows = [json.loads(line) for line in (tmp_path / "out" / "run_metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"] and rows[-1]["accuracy"] > 0.7
    accuracy = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert set(accuracy) == {"all", "edited", *(each["strength"] for each in map(row, range(20, 29)))}
    whole = accuracy["all"]
    assert (whole["num_pairs"], whole["num_prompts"]) == (9 + 3 * 2, 9)
    assert whole["low"] <= whole["accuracy"] <= whole["high"] and whole["accuracy"] > 0.7
    assert whole["num_pairs"] == sum(entry["num_pairs"] for name, entry in accuracy.items() if name != "all")
    judge, shares = RewardModel.open(tmp_path / "out"), []
    for preference in map(Preference.from_json, map(row, range(20, 29))):
        scores = judge.score([preference.answered(answer) for answer, _ in preference.ranking()])
        shares += [better > worse for place, better in enumerate(scores) for worse in scores[place + 1 :]]
    assert sum(shares) / len(shares) == whole["accuracy"]
    assert artifact.read_manifest(tmp_path / "out").kind == "reward model"


def test_an_interrupted_run_ends_as_one_that_was_not(
    perform_stage: Perform, settings: Settings, tmp_path: Path, monkeypatch: Any
):
    settings = {**settings, "save_minutes": 1e-9}
    perform_stage("reward", tmp_path / "whole", **settings)
    write_row = Run.metrics

    def write_and_fail(self: Run, step: int, **values: float) -> None:
        write_row(self, step, **values)
        if step == 4:
            raise KeyError("power failure")

    monkeypatch.setattr(Run, "metrics", write_and_fail)
    with pytest.raises(KeyError):
        perform_stage("reward", tmp_path / "out", **settings)
    monkeypatch.setattr(Run, "metrics", write_row)
    perform_stage("reward", tmp_path / "out", **settings)
    assert artifact.content_hash(tmp_path / "out") == artifact.content_hash(tmp_path / "whole")


def test_a_score_does_not_depend_on_what_else_is_scored(reward_path: Path):
    judge = RewardModel.open(reward_path)
    conversations = [each.answered(each.chosen) for each in map(Preference.from_json, map(row, range(4)))]
    assert judge.score(conversations) == [judge.score([each])[0] for each in conversations]


def test_a_better_answer_has_a_better_grade(reward_path: Path):
    judge = RewardModel.open(reward_path)
    prompt = Conversation((Message("user", "Where is my order?"),))
    answers = [Message("assistant", text) for text in ("On its way.", "We open at nine.", "Your order 1 is a parcel.")]
    scores = judge.score([prompt.with_message(answer) for answer in answers])
    grades = [judge.grade(Question("1", prompt, {}), answer) for answer in answers]
    assert sorted(range(3), key=scores.__getitem__) == sorted(range(3), key=lambda at: grades[at].score)
    assert grades[0].score == pytest.approx(1 / (1 + torch.exp(torch.tensor(-scores[0])).item()), rel=1e-5)


def test_a_reward_model_is_taken_for_nothing_else_and_nothing_else_for_one(
    perform_stage: Perform,
    training: Settings,
    reward_path: Path,
    checkpoint_path: Path,
    dataset_path: Path,
    tmp_path: Path,
):
    with pytest.raises(CheckpointError, match="is a reward model; expected a language model"):
        Checkpoint.open(reward_path)
    with pytest.raises(CheckpointError, match="is a reward model"):
        start = {"start": str(reward_path), "size": None, "tokenizer": None}
        perform_stage("sft", tmp_path / "out", **{**training, **start})
    with pytest.raises(CheckpointError, match=r"architectures = \['LlamaForCausalLM'\]; expected \['LlamaForSeq"):
        RewardModel.open(checkpoint_path)


def test_an_adapter_is_refused(perform_stage: Perform, settings: Settings, tmp_path: Path):
    with pytest.raises(ConfigError, match="no adapter: a reward model is trained and written as a whole"):
        perform_stage("reward", tmp_path / "out", **settings, adapter={"rank": 4})


def test_doctor_finds_nothing_wrong_with_it(reward_path: Path):
    assert examine(reward_path).findings == []


def test_what_cannot_be_scored_is_refused(reward_path: Path):
    judge = RewardModel.open(reward_path)
    with pytest.raises(ChatError, match="a conversation without a last answer"):
        judge.score([Conversation((Message("user", "Hi"),))])
    with pytest.raises(ChatError, match="tokens; expected at most 256"):
        judge.score([Conversation((Message("user", "Hi " * 300), Message("assistant", "Hello.")))])
