"""Direct preference optimization: its loss and gradients are the formula's and TRL's, and the better answers win."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_rows import row, write
from pydantic import ValidationError
from safetensors.torch import load_file

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Packer, Position
from puna.data.preference import STRENGTHS, Preference
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.source import disk_name
from puna.model.attend import attend_causally, packed_attend
from puna.model.llama import Llama
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError, DataError
from puna.pipeline.run import Run
from puna.training.dpo import Config
from puna.training.objectives.dpo import Dpo, answer_keys, log_probabilities
from puna.training.objectives.references import reference_log_probabilities

pytestmark = pytest.mark.usefixtures("no_picture")

Perform = Callable[..., bool]
Settings = dict[str, Any]
BETA, NLL = 0.3, 0.2


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pairs") / "data", [row(n) for n in range(12)])


@pytest.fixture
def settings(training: Settings, checkpoint_path: Path, pairs_path: Path) -> Settings:
    """Settings of a dpo run that takes a moment."""
    start = {"data": [str(pairs_path)], "start": str(checkpoint_path), "size": None, "tokenizer": None}
    return {**training, **start, "optim": {"lr": 0.003, "warmup_steps": 2}}


def moved(checkpoint: Path) -> Llama:
    """Load the checkpoint, its weights a little off."""
    model, generator = Checkpoint.open(checkpoint).load(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def read(objective: Dpo, data: Path, *, encode: Any = None, batch_tokens: int = 4000) -> Batch:
    packer = Packer(
        Dataset([data], objective.kinds),
        encode or objective.encode,
        seed=0,
        batch_tokens=batch_tokens,
        context=200,
        is_cut=False,
    )
    return packer.next(Position())[0]


def hidden_of(model: Llama, batch: Batch) -> torch.Tensor:
    return model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths))


def objective_of(reference: Llama, chat: ChatFormat, data: Path, strengths: Any = STRENGTHS) -> Dpo:
    """Return the objective with the reference's log-probabilities of all answers."""
    objective = Dpo(chat, frozenset(strengths), {}, BETA, NLL)
    batch = read(objective, data, encode=objective.answers)
    with torch.no_grad():
        values = log_probabilities(reference, hidden_of(reference, batch), batch)[0].tolist()
    return Dpo(chat, frozenset(strengths), dict(zip(answer_keys(batch), values, strict=True)), BETA, NLL)


def plain_log_probabilities(model: Llama, chat: ChatFormat, row: Preference, answer: Any) -> tuple[float, float]:
    """Compute in float64, one token at a time: the sum over an answer's words, the mean with its end."""
    prompt, (ids, _) = chat.prompt(row.prompt), chat.encode(row.answered(answer))
    assert ids[: len(prompt)] == prompt and ids[-1] in chat.stop_ids
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), lambda layer, q, k, v: attend_causally(q, k, v))
        logits_TV = model.logits(hidden).double()
    tokens = [torch.log_softmax(logits_TV[t - 1], 0)[ids[t]].item() for t in range(len(prompt), len(ids))]
    return sum(tokens[:-1]), sum(tokens) / len(tokens)


@pytest.mark.parametrize("strengths, num_pairs", [(STRENGTHS, 18), (("significantly better", "better"), 14)])
def test_the_loss_is_the_formula(checkpoint_path: Path, pairs_path: Path, strengths: Any, num_pairs: int):
    checkpoint = Checkpoint.open(checkpoint_path)
    reference, policy, chat = (
        checkpoint.load().double(),
        moved(checkpoint_path).double(),
        ChatFormat(checkpoint.tokenizer()),
    )
    objective = objective_of(reference, chat, pairs_path, strengths)
    batch = read(objective, pairs_path)
    losses = objective.losses(policy, hidden_of(policy, batch), batch)
    expected = dict.fromkeys(("loss", "dpo_loss", "nll_loss", "accuracy", "margin"), 0.0)
    expected |= dict.fromkeys(("chosen_log_probability", "rejected_log_probability"), 0.0)
    count = 0
    for preference in map(Preference.from_json, map(row, range(12))):
        is_strong = preference.strength in strengths
        pairs = [(preference.chosen, preference.rejected)] if is_strong else []
        if preference.edited:
            pairs += [(preference.edited, preference.chosen), (preference.edited, preference.rejected)]
        for better, worse in pairs:
            (p, likelihood), (q, _) = (
                plain_log_probabilities(policy, chat, preference, each) for each in (better, worse)
            )
            p_0, q_0 = (plain_log_probabilities(reference, chat, preference, each)[0] for each in (better, worse))
            margin = torch.tensor(BETA * ((p - p_0) - (q - q_0)), dtype=torch.float64)
            dpo = -torch.log(1 / (1 + torch.exp(-margin))).item()
            terms = (dpo - NLL * likelihood, dpo, -likelihood, float(margin > 0), margin.item(), p, q)
            expected = {name: total + term for (name, total), term in zip(expected.items(), terms, strict=True)}
            count += 1
    assert objective.num_counted(batch) == count == num_pairs
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_headers_and_ends_count_in_neither_answer(checkpoint_path: Path, pairs_path: Path):
    chat = ChatFormat(Checkpoint.open(checkpoint_path).tokenizer())
    preference = Preference.from_json(row(1))
    better, worse = Dpo(chat, frozenset(STRENGTHS), {}, BETA, NLL).answers(preference, None)  # pyright: ignore
    for example, (answer, _) in zip((better, worse), preference.ranking(), strict=True):
        words = [token for token, is_word in zip(example.ids, example.columns["is_word"], strict=True) if is_word]
        assert chat.tokenizer.decode(words) == answer[0].content
    assert sum(better.mask) == sum(better.columns["is_word"]) + 1, "of the better one the end is learned by likelihood"
    assert sum(worse.mask) == sum(worse.columns["is_word"])


def test_loss_and_gradients_are_those_of_trl(checkpoint_path: Path, tmp_path: Path):
    trl = pytest.importorskip("trl")
    import datasets
    from transformers import AutoTokenizer, LlamaForCausalLM

    rows = [{name: row(n)[name] for name in ("prompt", "chosen", "rejected")} for n in (1, 2, 3)]
    tokenizer = Checkpoint.open(checkpoint_path).tokenizer()
    chat, policy, reference = ChatFormat(tokenizer), moved(checkpoint_path), Checkpoint.open(checkpoint_path).load()
    theirs = LlamaForCausalLM.from_pretrained(checkpoint_path, dtype=torch.float32)
    theirs.load_state_dict({disk_name(name): value for name, value in policy.state_dict().items()}, strict=False)
    theirs.tie_weights()
    told = {"output_dir": str(tmp_path / "trl"), "report_to": "none", "use_cpu": True, "bf16": False, "beta": BETA}
    told |= {"gradient_checkpointing": False, "disable_dropout": True}
    trainer = trl.DPOTrainer(
        model=theirs,
        ref_model=LlamaForCausalLM.from_pretrained(checkpoint_path, dtype=torch.float32),
        args=trl.DPOConfig(loss_type=["sigmoid"], **told),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path),
    )
    objective = objective_of(reference, chat, write(tmp_path / "data", rows))
    batch = read(objective, tmp_path / "data")
    losses = objective.losses(policy, hidden_of(policy, batch), batch)
    (losses["loss"] / 3).backward()

    examples = [trainer.train_dataset[index] for index in range(3)]
    for example, preference in zip(examples, map(Preference.from_json, rows), strict=True):
        assert example["prompt_ids"] + example["chosen_ids"] == chat.encode(preference.answered(preference.chosen)).ids
    inputs = trainer.data_collator(examples)
    is_end = torch.isin(inputs["input_ids"], torch.tensor(chat.stop_ids))
    words = {**inputs, "completion_mask": inputs["completion_mask"] * ~is_end}
    loss = trainer._compute_loss(trainer.model, words, False)
    assert losses["dpo_loss"].item() / 3 == pytest.approx(loss.item(), rel=1e-5)
    trainer.loss_types = ["sft"]
    for example in examples:  # One at a time: TRL's mean is over all tokens of a batch, ours over each answer's.
        loss = loss + NLL / 3 * trainer._compute_loss(trainer.model, trainer.data_collator([example]), False)
    loss.backward()
    assert losses["loss"].item() / 3 == pytest.approx(loss.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[disk_name(name)], rtol=1e-3, atol=1e-6)


def test_the_better_answers_win(perform_stage: Perform, settings: Settings, tmp_path: Path):
    held_out = write(tmp_path / "held_out", [row(n) for n in range(20, 26)])
    perform_stage("dpo", tmp_path / "out", **{**settings, "steps": 20, "validation": [str(held_out)]})
    rows = [json.loads(line) for line in (tmp_path / "out" / "run_metrics.jsonl").read_text().splitlines()]
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4), "at first the model is its own reference"
    assert rows[0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert rows[-1]["accuracy"] == 1 and rows[-1]["margin"] > 0.2
    assert rows[-1]["chosen_log_probability"] > rows[0]["chosen_log_probability"]
    losses = [each["validation_loss"] for each in rows if "validation_loss" in each]
    assert losses[-1] < losses[0]
    assert not (tmp_path / ".runs" / "out" / "journals").exists()
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert "data: 14 pairs of 12 prompts; left out: 4 only slightly better" in log


def test_the_learning_rate_is_the_papers_even_beside_other_settings_of_the_optimizer(settings: Settings):
    told = {**settings, "optim": {"warmup_steps": 3}}
    assert Config.model_validate(told).optim.lr == 1e-5


def test_weak_pairs_change_nothing(perform_stage: Perform, settings: Settings, tmp_path: Path):
    strong = [row(n) for n in range(12) if n % 3 != 2]
    for name, rows in (("with", [*strong, row(2), row(5), row(11)]), ("without", strong)):
        data = write(tmp_path / name, rows)
        perform_stage(
            "dpo", tmp_path / f"{name}.out", **{**settings, "data": [str(data)], "batch_tokens": 4000, "steps": 2}
        )
    one, other = (load_file(tmp_path / f"{name}.out" / "model.safetensors") for name in ("with", "without"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_an_adapters_reference_is_its_base(
    perform_stage: Perform, settings: Settings, checkpoint_path: Path, pairs_path: Path, tmp_path: Path
):
    perform_stage("dpo", tmp_path / "out", **settings, adapter={"rank": 4, "dropout": 0.2})
    rows = [json.loads(line) for line in (tmp_path / "out" / "run_metrics.jsonl").read_text().splitlines()]
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4) and rows[-1]["margin"] > rows[0]["margin"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


# Interruptions


class PowerFailure(BaseException):
    """Ends a run where nobody expects it."""


def test_no_interruption_changes_the_weights_or_computes_a_reference_twice(
    perform_stage: Perform, settings: Settings, tmp_path: Path, monkeypatch: Any
):
    settings = {**settings, "batch_tokens": 256, "save_minutes": 1e-9}
    perform_stage("dpo", tmp_path / "whole", **settings)
    num_computed, compute, write_row = [0], log_probabilities, Run.metrics

    def compute_and_fail(*arguments: Any) -> Any:
        num_computed[0] += 1
        if num_computed[0] == 3:
            raise PowerFailure
        return compute(*arguments)

    def fail_at_4(self: Run, step: int, **values: float) -> None:
        write_row(self, step, **values)
        if step == 4:
            raise PowerFailure

    monkeypatch.setattr("puna.training.objectives.references.log_probabilities", compute_and_fail)
    with pytest.raises(PowerFailure):
        perform_stage("dpo", tmp_path / "out", **settings)
    path = tmp_path / ".runs" / "out" / "journals" / "reference-data.jsonl"
    whole = path.read_text()
    assert len(whole.splitlines()) == 1 + 2, "a header and two batches"
    path.write_text(whole + whole[:50])
    monkeypatch.setattr(Run, "metrics", fail_at_4)
    with pytest.raises(PowerFailure):
        perform_stage("dpo", tmp_path / "out", **settings)
    num_batches = len(path.read_text().splitlines()) - 1
    assert path.read_text().startswith(whole) and num_batches > 3
    monkeypatch.setattr(Run, "metrics", write_row)
    perform_stage("dpo", tmp_path / "out", **settings)
    assert num_computed[0] == num_batches + 1, "the one that failed was computed again, and no other"
    assert artifact.content_hash(tmp_path / "out") == artifact.content_hash(tmp_path / "whole")


def test_references_are_those_of_the_batches_of_the_first_epoch(
    settings: Settings, checkpoint_path: Path, pairs_path: Path, tmp_path: Path
):
    from rich.console import Console

    checkpoint = Checkpoint.open(checkpoint_path)
    objective = Dpo(ChatFormat(checkpoint.tokenizer()), frozenset(STRENGTHS), {}, BETA, NLL)
    config, run = Config.model_validate(settings), Run("dpo", "key", tmp_path, tmp_path, Console(quiet=True))
    found = reference_log_probabilities(config, run, objective, checkpoint.load())
    assert found == reference_log_probabilities(config, run, objective, checkpoint.load()) and len(found) == 27
    assert found == pytest.approx(objective_of(checkpoint.load(), objective.chat, pairs_path).references, rel=1e-4)


# Refusals


def test_what_cannot_be_trained_on_is_refused(
    perform_stage: Perform, settings: Settings, tmp_path: Path, dataset_path: Path
):
    data = {"data": [str(write(tmp_path / "weak", [row(2), row(5)]))]}
    with pytest.raises(
        DataError,
        match="no pair in data is left; expected significantly better, better",
    ):
        perform_stage("dpo", tmp_path / "out", **{**settings, **data})
    with pytest.raises(DataError, match=r"no rows in .*; expected preferences\*.jsonl"):
        perform_stage("dpo", tmp_path / "out", **{**settings, "data": [str(dataset_path)]})
    with pytest.raises(ConfigError, match="no fresh_identifiers: answers are compared as they were judged"):
        perform_stage("dpo", tmp_path / "out", **settings, fresh_identifiers=True)
    with pytest.raises(DataError, match="longer than the context; expected conversations of at most 16"):
        perform_stage("dpo", tmp_path / "out", **{**settings, "context": 16})
    with pytest.raises(ValidationError):
        Config.model_validate({**settings, "strengths": ["stronger"]})
