"""Training on what the assistant says: nothing else counts; no kill, cut file or broken number changes the result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Packer, Position
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.attend import attend_causally
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ChatError, DataError, TrainError
from puna.pipeline.run import Run
from puna.training.fit import fit
from puna.training.loop.observer import Observer
from puna.training.loop.start import starting_model
from puna.training.loop.training import Training as Running
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.preview import Preview
from puna.training.sft import Config

PUNA = Path(sys.executable).with_name("puna")
AT_EVERY_STEP = 1e-9

Perform = Callable[..., bool]
Settings = dict[str, Any]

pytestmark = pytest.mark.usefixtures("no_picture")


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run_metrics.jsonl").read_text().splitlines()]


def weights_hash(out: Path) -> str:
    return artifact.hash_file(out / "model.safetensors")


class PowerFailure(BaseException):
    """Ends a run where nobody expects it."""


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Return a function that lets every run end at a step: after the step is taken, before its state is saved."""
    write = Run.metrics

    def set_step(failing: int | None) -> None:
        def write_or_fail(self: Run, step: int, **values: float) -> None:
            write(self, step, **values)
            if step == failing:
                raise PowerFailure

        monkeypatch.setattr(Run, "metrics", write_or_fail)

    return set_step


@pytest.fixture(scope="module")
def whole(perform_stage: Perform, training: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run with the settings of `training` that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "out"
    perform_stage("sft", path, **training)
    return path


def plain_losses(checkpoint: Path, conversations: list[Conversation]) -> list[float]:
    """Compute -log p of each token that the assistant says, one conversation at a time, by the definition."""
    opened = Checkpoint.open(checkpoint)
    model, chat = opened.load(), ChatFormat(opened.tokenizer())
    losses: list[float] = []
    for conversation in conversations:
        ids, mask = chat.encode(conversation)
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), lambda layer, q, k, v: attend_causally(q, k, v))
        log_probabilities = F.log_softmax(model.logits(hidden), dim=-1)
        losses += [-log_probabilities[i - 1, ids[i]].item() for i in range(1, len(ids)) if mask[i]]
    return losses


def test_the_loss_is_the_mean_over_what_the_assistant_says(
    perform_stage: Perform, training: Settings, tmp_path: Path, checkpoint_path: Path, dataset_path: Path
):
    start = {"init_from": str(checkpoint_path), "size": None, "tokenizer": None}
    perform_stage("sft", tmp_path / "out", **{**training, **start, "batch_tokens": 10_000, "steps": 1})
    dataset = Dataset([dataset_path], ["conversations"])
    rows = [dataset[index] for index in range(len(dataset))]
    losses = plain_losses(checkpoint_path, [row for row in rows if isinstance(row, Conversation)])
    assert metrics(tmp_path / "out")[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_what_nobody_answers_changes_nothing(perform_stage: Perform, training: Settings, tmp_path: Path):
    for name, last in (("thanks", "Thank you!"), ("bye", "Good night.")):
        (tmp_path / name).mkdir()
        said = [("user", "Open?"), ("assistant", "Yes, until six."), ("user", last)]
        row = {"messages": [{"role": role, "content": content} for role, content in said]}
        (tmp_path / name / "conversations.jsonl").write_text(json.dumps(row))
        perform_stage("sft", tmp_path / f"{name}.out", **{**training, "data": [str(tmp_path / name)]})
    assert weights_hash(tmp_path / "thanks.out") == weights_hash(tmp_path / "bye.out")


def test_only_masked_targets_have_a_gradient(checkpoint_path: Path, dataset_path: Path):
    checkpoint = Checkpoint.open(checkpoint_path)
    objective = NextToken(ChatFormat(checkpoint.tokenizer()), False, False)
    dataset = Dataset([dataset_path], objective.kinds)
    batch, _ = Packer(dataset, objective.encode, seed=0, batch_tokens=300, context=300, is_cut=False).next(Position())
    model = checkpoint.load()
    hidden_TD = torch.randn(len(batch.tokens_T), model.config.dim, requires_grad=True)
    objective.losses(model, hidden_TD, batch)["loss"].backward()
    assert hidden_TD.grad is not None
    has_gradient_T = hidden_TD.grad.abs().sum(dim=1) > 0
    said = objective.chat.encode(dataset_row(dataset, batch)).mask[1:]
    assert has_gradient_T.tolist() == said and 0 < sum(said) < len(said)


def dataset_row(dataset: Dataset, batch: Batch) -> Conversation:
    assert len(batch.lengths) == 1
    row = dataset[int(dataset.order(0, 0)[0])]
    assert isinstance(row, Conversation)
    return row


def test_going_on_from_a_checkpoint_leaves_it_as_it_was(
    perform_stage: Perform, training: Settings, tmp_path: Path, checkpoint_path: Path
):
    before = weights_hash(checkpoint_path)
    start = {"init_from": str(checkpoint_path), "size": None, "tokenizer": None}
    perform_stage("sft", tmp_path / "out", **{**training, **start})
    assert weights_hash(checkpoint_path) == before != weights_hash(tmp_path / "out")
    assert metrics(tmp_path / "out")[-1]["loss"] < metrics(tmp_path / "out")[0]["loss"]


def test_fresh_identifiers_are_others_in_every_epoch(dataset_path: Path, tokenizer_path: Path):
    objective = NextToken(ChatFormat(Tokenizer.load(tokenizer_path)), False, has_fresh_identifiers=True)
    dataset = Dataset([dataset_path], objective.kinds)
    packer = Packer(dataset, objective.encode, seed=0, batch_tokens=10_000, context=300, is_cut=False)
    epochs = [packer.next(Position(epoch))[0].tokens_T.tolist() for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] and len(epochs[0]) == len(epochs[1])
    as_stored = Packer(
        dataset, NextToken(objective.chat, False, False).encode, seed=0, batch_tokens=10_000, context=300, is_cut=False
    )
    assert sorted(epochs[0]) != sorted(epochs[1]) != sorted(as_stored.next(Position())[0].tokens_T.tolist())


# Interruptions


def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    perform_stage: Perform, training: Settings, tmp_path: Path, fail_at: Callable[[int | None], None]
):
    settings = {**training, "steps": 12, "save_minutes": AT_EVERY_STEP, "fresh_identifiers": True}
    perform_stage("sft", tmp_path / "whole", **settings)
    for failing in (1, 2, 5, 6, 11, 12):
        fail_at(failing)
        with pytest.raises(PowerFailure):
            perform_stage("sft", tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
    fail_at(None)
    perform_stage("sft", tmp_path / "out", **settings)
    assert weights_hash(tmp_path / "out") == weights_hash(tmp_path / "whole")
    kept = ("step", "loss", "gradient_norm", "tokens")
    one, other = ([[row[name] for name in kept] for row in metrics(tmp_path / name)] for name in ("out", "whole"))
    assert one == other
    assert artifact.content_hash(tmp_path / "out") == artifact.content_hash(tmp_path / "whole")
    assert not list((tmp_path / ".runs" / "out").glob("states*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_its_step_first(
    perform_stage: Perform, training: Settings, whole: Path, tmp_path: Path, monkeypatch: Any, number: int
):
    handler, write = signal.getsignal(number), Run.metrics

    def write_and_ask(self: Run, step: int, **values: float) -> None:
        write(self, step, **values)
        if step == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "metrics", write_and_ask)
    with pytest.raises(KeyboardInterrupt):
        perform_stage("sft", tmp_path / "out", **training)
    assert signal.getsignal(number) is handler
    monkeypatch.setattr(Run, "metrics", write)
    perform_stage("sft", tmp_path / "out", **training)
    assert "resuming after step 4" in (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert weights_hash(tmp_path / "out") == weights_hash(whole)


def test_without_a_saved_state_an_interrupted_run_begins_again(
    perform_stage: Perform, training: Settings, whole: Path, tmp_path: Path, fail_at: Callable[[int | None], None]
):
    fail_at(4)
    with pytest.raises(PowerFailure):
        perform_stage("sft", tmp_path / "out", **training)
    fail_at(None)
    perform_stage("sft", tmp_path / "out", **training)
    assert weights_hash(tmp_path / "out") == weights_hash(whole)
    assert [row["step"] for row in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]


def test_other_settings_do_not_go_on_from_the_states_of_these(
    perform_stage: Perform, training: Settings, whole: Path, tmp_path: Path, fail_at: Callable[[int | None], None]
):
    settings = {**training, "save_minutes": AT_EVERY_STEP}
    fail_at(4)
    with pytest.raises(PowerFailure):
        perform_stage("sft", tmp_path / "out", **settings, seed=1)
    fail_at(None)
    perform_stage("sft", tmp_path / "out", **settings)
    assert weights_hash(tmp_path / "out") == weights_hash(whole)


def test_a_state_that_was_cut_is_passed_over_for_the_one_before(
    perform_stage: Perform, training: Settings, whole: Path, tmp_path: Path, fail_at: Callable[[int | None], None]
):
    settings = {**training, "save_minutes": AT_EVERY_STEP}
    fail_at(5)
    with pytest.raises(PowerFailure):
        perform_stage("sft", tmp_path / "out", **settings)
    fail_at(None)
    states = tmp_path / ".runs" / "out" / "states"
    assert sorted(path.name for path in states.iterdir()) == ["step-00000003", "step-00000004"]
    for number, (damaged, goes_on_after) in enumerate(
        [
            (["step-00000004/model.safetensors"], 3),
            (["step-00000004/optimizer.safetensors"], 3),
            (["step-00000004/progress.json"], 3),
            (["step-00000004/manifest.json"], 3),
            (["step-00000004/model.safetensors", "step-00000003/optimizer.safetensors"], 0),
        ]
    ):
        shutil.copytree(tmp_path / ".runs", tmp_path / str(number) / ".runs")
        directory = tmp_path / str(number) / ".runs" / "out"
        for name in damaged:
            path = directory / "states" / name
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        perform_stage("sft", tmp_path / str(number) / "out", **settings)
        log = (directory / "log.txt").read_text()
        assert (f"resuming after step {goes_on_after}" in log) == bool(goes_on_after) == ("resuming after" in log)
        assert log.count("skipped a saved state") == len(damaged)
        assert weights_hash(tmp_path / str(number) / "out") == weights_hash(whole)


def test_what_a_kill_left_while_saving_is_removed(
    perform_stage: Perform, training: Settings, tmp_path: Path, fail_at: Callable[[int | None], None]
):
    fail_at(1)
    with pytest.raises(PowerFailure):
        perform_stage("sft", tmp_path / "out", **training, save_minutes=AT_EVERY_STEP)
    (tmp_path / ".runs" / "out" / "states" / ".step-00000001.partial").mkdir(parents=True)
    fail_at(3)
    with pytest.raises(PowerFailure):
        perform_stage("sft", tmp_path / "out", **training, save_minutes=AT_EVERY_STEP)
    names = sorted(path.name for path in (tmp_path / ".runs" / "out" / "states").iterdir())
    assert names == ["step-00000001", "step-00000002"]


def test_killed_processes_end_with_the_weights_of_one_that_was_not(
    perform_stage: Perform, training: Settings, tmp_path: Path
):
    settings = {**training, "steps": 30, "save_minutes": AT_EVERY_STEP}
    perform_stage("sft", tmp_path / "whole", **settings)
    flags = [f"--{name}={value}" for name, value in flat(settings)]
    command = [str(PUNA), "sft", "--out", str(tmp_path / "out"), *flags]
    rows = tmp_path / ".runs" / "out" / "metrics.jsonl"

    def run_until(step: int, number: int) -> int:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (rows.exists() and f'"step": {step},' in rows.read_text()):
            time.sleep(0.002)
        os.kill(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL or b"interrupted; the same command resumes" in error
        return process.returncode

    assert run_until(7, signal.SIGKILL) == -signal.SIGKILL
    assert run_until(18, signal.SIGTERM) == 130
    saved = max(path.name for path in (tmp_path / ".runs" / "out" / "states").glob("step-*"))
    assert saved == f"step-{json.loads(rows.read_text().splitlines()[-1])['step']:08d}"
    assert not (tmp_path / "out").exists()
    perform_stage("sft", tmp_path / "out", **settings)
    assert f"resuming after step {int(saved[-8:])}" in (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert weights_hash(tmp_path / "out") == weights_hash(tmp_path / "whole")
    assert [row["step"] for row in metrics(tmp_path / "out")] == list(range(1, 31))


def flat(settings: Settings, prefix: str = "") -> list[tuple[str, str]]:
    """Spell settings as flags: {"optim": {"lr": 1}} -> [("optim.lr", "1")]."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{name}.")
        else:
            found += [(prefix + name, str(each)) for each in (value if isinstance(value, list) else [value])]
    return found


# Numbers that are not finite


@dataclass(frozen=True)
class Breaking(NextToken):
    """An objective that breaks at some steps, and keeps the weights that it meets."""

    model: Llama
    at: dict[int, str]
    seen: list[torch.Tensor]

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        loss = super().losses(model, hidden_TD, batch)["loss"]
        self.seen.append(self.model.layers[0].mlp.up_proj.weight.detach().clone())  # pyright: ignore
        match self.at.get(len(self.seen)):
            case "infinite loss":
                loss = loss * float("inf")
            case "nan beside the loss":
                return {"loss": loss, "other_loss": loss * float("nan")}
            case "nan gradient":
                loss = loss + (hidden_TD.sum() * 0).sqrt()
        return {"loss": loss}


class Recorder(Observer):
    """Notes every call of the loop."""

    def __init__(self, name: str, calls: list[str]):
        self.name, self.calls = name, calls

    def begin(self, training: Running) -> None:
        self.calls.append(f"{self.name} begins at {training.state.step}")

    def before_step(self, training: Running) -> None:
        self.calls.append(f"{self.name} before {training.state.step}")

    def end(self, training: Running) -> None:
        self.calls.append(f"{self.name} ends at {training.state.step}")


@pytest.mark.parametrize("is_preview", [False, True])
def test_observers_see_every_step_and_of_a_preview_only_the_beginning(
    training: Settings, tmp_path: Path, is_preview: bool
):
    config = parse_config(Config, {**training, "steps": 2}, where="sft")
    model, tokenizer = starting_model(config)
    (tmp_path / "out").mkdir()
    run = Run("sft", "key", tmp_path / "out", tmp_path, Console(quiet=True), is_preview=is_preview)
    calls: list[str] = []
    objective = NextToken(ChatFormat(tokenizer), False, False)
    fit(config, run, objective, model, tokenizer, observers=[Recorder("a", calls), Recorder("b", calls)])
    steps = [f"{name} before {step}" for step in range(2) for name in "ab"]
    ends = [] if is_preview else [*steps, "b ends at 2", "a ends at 2"]
    assert calls == ["a begins at 0", "b begins at 0", *ends]
    assert (tmp_path / "out" / "model.safetensors").exists() != is_preview


@pytest.fixture
def train_breaking(training: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Breaking]:
    """Return a function that trains with an objective that breaks at the steps given."""
    for name in ("begin", "end"):  # the preview computes a batch, too
        monkeypatch.setattr(Preview, name, lambda *_: None)
    (tmp_path / "run").mkdir()

    def train_once(at: dict[int, str], *, out: str = "out", **changes: Any) -> Breaking:
        config = parse_config(Config, {**training, **changes}, where="sft")
        model, tokenizer = starting_model(config)
        objective = Breaking(ChatFormat(tokenizer), False, False, model, at, [])
        (tmp_path / out).mkdir()
        fit(
            config,
            Run("sft", "key", tmp_path / out, tmp_path / "run", Console(quiet=True)),
            objective,
            model,
            tokenizer,
        )
        return objective

    return train_once


@pytest.mark.parametrize("kind", ["infinite loss", "nan beside the loss", "nan gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights_as_they_were(
    train_breaking: Callable[..., Breaking], tmp_path: Path, kind: str
):
    seen = train_breaking({3: kind}).seen
    assert len(seen) == 6
    assert [torch.equal(one, other) for one, other in pairwise(seen)] == [False, False, True, False, False]
    assert "step 3: the loss or its gradient is not finite" in (tmp_path / "run" / "log.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and None in rows[2].values() and "NaN" not in json.dumps(rows)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out" / "model.safetensors").values())


def test_three_such_steps_in_a_row_stop_the_run_with_its_last_state_intact(
    train_breaking: Callable[..., Breaking], tmp_path: Path
):
    with pytest.raises(TrainError, match=r"3 steps in a row.*Lower optim\.lr"):
        train_breaking(dict.fromkeys((3, 4, 5), "infinite loss"), save_minutes=AT_EVERY_STEP)
    newest = max((tmp_path / "run" / "states").glob("step-*"))
    artifact.verify(newest)
    saved = load_file(newest / "model.safetensors")["layers.0.mlp.up_proj.weight"]
    objective = train_breaking({}, out="again", save_minutes=AT_EVERY_STEP)
    assert torch.equal(objective.seen[0], saved) and saved.isfinite().all()


def test_single_broken_steps_do_not_stop_a_run(train_breaking: Callable[..., Breaking]):
    assert len(train_breaking(dict.fromkeys((1, 2, 4, 5), "infinite loss")).seen) == 6


def test_a_run_whose_first_step_is_broken_can_be_resumed(
    train_breaking: Callable[..., Breaking], tmp_path: Path, fail_at: Callable[[int | None], None]
):
    fail_at(2)
    with pytest.raises(PowerFailure):
        train_breaking({1: "infinite loss"}, save_minutes=AT_EVERY_STEP)
    fail_at(None)
    assert len(train_breaking({}, out="again", save_minutes=AT_EVERY_STEP).seen) == 5


# Conversations that do not fit


def test_conversations_that_are_too_long_are_counted_also_across_an_interruption(
    perform_stage: Perform, training: Settings, copy_of_dataset: Path, tmp_path: Path, fail_at: Callable[..., None]
):
    with (copy_of_dataset / "conversations.jsonl").open("a") as file:
        for number in range(3):
            said = [("user", f"{number} " * 300), ("assistant", "Yes.")]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}) + "\n")
    changes = {"data": [str(copy_of_dataset)], "steps": None, "epochs": 2, "save_minutes": AT_EVERY_STEP}
    fail_at(5)
    with pytest.raises(PowerFailure):
        perform_stage("sft", tmp_path / "out", **{**training, **changes})
    fail_at(None)
    perform_stage("sft", tmp_path / "out", **{**training, **changes})
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert "skipped conversations longer than 256 tokens: 6 times" in log


def test_data_that_cannot_be_trained_on_is_refused_by_its_place(
    perform_stage: Perform, training: Settings, copy_of_dataset: Path, tmp_path: Path
):
    with pytest.raises(DataError, match="every conversation is longer than the context"):
        perform_stage("sft", tmp_path / "out", **{**training, "max_length": 64})
    with (copy_of_dataset / "conversations.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    with pytest.raises(ChatError, match=r"conversations\.jsonl row 13: .*no message to train on"):
        perform_stage("sft", tmp_path / "out", **{**training, "data": [str(copy_of_dataset)], "steps": 20})
    (copy_of_dataset / "conversations.jsonl").unlink()
    with pytest.raises(DataError, match=r"expected conversations\*"):
        perform_stage("sft", tmp_path / "out", **{**training, "data": [str(copy_of_dataset)]})
