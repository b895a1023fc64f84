"""Settings that a recipe leaves open adapt to the data; a set value stays; resumed and repeated runs choose alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.pipeline.artifacts import artifact
from puna.pipeline.config import parse_config
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run
from puna.training import distill, sft
from puna.training.loop import defaults
from puna.training.loop.defaults import RowLengths, choose

Perform = Callable[..., bool]

pytestmark = pytest.mark.usefixtures("no_picture")


def config_of(**settings: Any) -> sft.Config:
    length = {} if "steps" in settings else {"epochs": 1}
    return parse_config(sft.Config, {"data": ["x"], "init_from": "y", **length, **settings}, where="sft")


def chosen(found: RowLengths, *, max_context: int = 131_072, **settings: Any) -> dict[str, int]:
    return choose(config_of(**settings), found, longest=found.context, max_context=max_context).values


def lengths(*counts: tuple[int, int], num_rows: int | None = None, is_cut: bool = False) -> RowLengths:
    """Rows of one example: (how many, tokens of each)."""
    rows = tuple((tokens,) for count, tokens in counts for _ in range(count))
    return RowLengths(num_rows or len(rows), rows, is_cut)


@pytest.mark.parametrize(("steps", "warmup"), [(5, 0), (10, 1), (30, 3), (499, 49), (500, 50), (100_000, 50)])
def test_the_warm_up_is_a_tenth_of_the_steps_and_at_most_50(steps: int, warmup: int):
    assert chosen(lengths((1000, 100)), steps=steps)["optim.warmup_steps"] == warmup


def test_steps_of_epochs_count_all_rows_and_not_only_those_looked_at():
    found = lengths((1000, 100), num_rows=10_000)  # a million tokens, 40 rows in a batch of 4,096
    assert chosen(found, epochs=0.5)["optim.warmup_steps"] == 12
    assert chosen(found, epochs=0.5, grad_accumulation=5)["optim.warmup_steps"] == 2


@pytest.mark.parametrize(
    ("outliers", "settings", "context"),
    [
        (5, {}, 128),
        (6, {}, 6016),
        (6, {"batch_tokens": 640}, 640),
        (6, {"max_context": 2048}, 2048),
        (0, {"max_context": 100}, 100),
    ],
)
def test_the_context_holds_all_but_half_a_percent_of_the_rows(outliers: int, settings: dict[str, int], context: int):
    assert chosen(lengths((1000 - outliers, 100), (outliers, 6000)), **settings)["max_length"] == context


def test_no_context_grows_beyond_8192_by_itself():
    assert chosen(lengths((10, 100_000)))["max_length"] == 8192
    assert chosen(lengths((10, 100_000)), max_length=100_000).keys() == {"batch_tokens", "optim.warmup_steps"}


def test_texts_that_are_cut_keep_pieces_of_1024_tokens():
    assert chosen(lengths((10, 100_000), is_cut=True))["max_length"] == 1024
    assert chosen(lengths((10, 20), is_cut=True), max_context=512)["max_length"] == 512


@pytest.mark.parametrize(
    ("found", "settings", "batch_tokens"),
    [
        (lengths((10_000, 100)), {}, 4096),
        (lengths((1000, 100)), {}, 2048),  # an epoch of 100,000 tokens: 25 steps of 4,096, 50 of 2,048
        (lengths((1000, 100)), {"grad_accumulation": 2}, 1024),
        (lengths((20, 100)), {}, 512),
        (lengths((20, 1000)), {}, 1024),  # a batch holds the longest example
        (lengths((20, 5000)), {}, 5056),
        (RowLengths(20, ((400, 500),) * 20, False), {}, 1024),  # pairs stay in one batch
        (lengths((2, 30_000), is_cut=True), {}, 1024),
    ],
)
def test_a_batch_is_halved_until_an_epoch_has_enough_steps(
    found: RowLengths, settings: dict[str, int], batch_tokens: int
):
    assert chosen(found, **settings)["batch_tokens"] == batch_tokens


def test_every_row_that_the_context_holds_fits_into_a_batch():
    found = RowLengths(300, ((700, 900),) * 300, False)
    values = chosen(found)
    assert values["max_length"] >= 900 and values["batch_tokens"] >= 1600


def test_the_wider_context_of_validation_data_or_of_answers_is_taken():
    found = lengths((100, 100))
    assert choose(config_of(), found, longest=300, max_context=4096).values["max_length"] == 320


@pytest.fixture
def open_run(checkpoint_path: Path, dataset_path: Path) -> dict[str, Any]:
    """Settings of a run that leaves open what can be."""
    return {
        "data": [str(dataset_path)], "init_from": str(checkpoint_path), "steps": 20, "precision": "float32",
        "optim": {"lr": 0.01},
    }  # fmt: skip


def test_the_choice_is_said_before_the_first_step_and_recorded(
    perform_stage: Perform, open_run: dict[str, Any], tmp_path: Path
):
    perform_stage("sft", tmp_path / "out", **open_run)
    recorded = json.loads((tmp_path / "out" / "run_config.json").read_text())
    values = (recorded["context"], recorded["batch_tokens"], recorded["optim"]["warmup_steps"])
    assert values == (256, 512, 2)
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert log.index("chosen for this data: max_length = 256 (holds 100.0% of the rows)") < log.index("tokens/s")
    assert json.loads((tmp_path / "out" / "run_facts.json").read_text())["chosen"] == {
        "context": 256, "batch_tokens": 512, "optim.warmup_steps": 2
    }  # fmt: skip
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "out" / "run_metrics.jsonl").open()]
    assert rates.index(max(rates)) == 2


def test_the_recorded_settings_given_as_a_recipe_make_the_same_weights(
    perform_stage: Perform, open_run: dict[str, Any], tmp_path: Path
):
    perform_stage("sft", tmp_path / "out", **open_run)
    perform_stage("sft", tmp_path / "again", **json.loads((tmp_path / "out" / "run_config.json").read_text()))
    one, other = (artifact.hash_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert one == other
    assert "chosen" not in (tmp_path / ".runs" / "again" / "log.txt").read_text()


def test_an_interrupted_run_goes_on_with_what_it_chose(
    perform_stage: Perform, open_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    perform_stage("sft", tmp_path / "whole", **open_run)
    write = Run.metrics

    def write_or_stop(self: Run, step: int, **values: float) -> None:
        write(self, step, **values)
        if step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "metrics", write_or_stop)
        perform_stage("sft", tmp_path / "out", **open_run, save_minutes=1e-9)
    # Another rule, as a later version might have: the run keeps the first choice.
    monkeypatch.setattr(defaults, "WARMUP_SHARE", 0.5)
    monkeypatch.setattr(defaults, "LEAST_BATCH_TOKENS", 2048)
    perform_stage("sft", tmp_path / "out", **open_run, save_minutes=1e-9)
    one, other = (artifact.hash_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert one == other


def test_an_interrupted_run_with_former_names_of_settings_goes_on_under_the_current_ones(
    perform_stage: Perform, open_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(self: Run, step: int, **values: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    former = {**open_run, "start": open_run["init_from"], "accumulate": 2, "save_minutes": 1e-9}
    del former["init_from"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), pytest.warns(FutureWarning, match="'start'"):
        patch.setattr(Run, "metrics", stop)
        perform_stage("sft", tmp_path / "out", **former)
    perform_stage("sft", tmp_path / "out", **open_run, grad_accumulation=2, save_minutes=1e-9)
    assert "resuming after step 6" in (tmp_path / ".runs" / "out" / "log.txt").read_text()
    with pytest.warns(FutureWarning):
        assert not perform_stage("sft", tmp_path / "out", **former)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["accumulate"] == 2 and "start" in manifest["inputs"]


def test_both_names_of_a_setting_are_refused(open_run: dict[str, Any]):
    with pytest.raises(ConfigError, match="one of 'max_length' and 'context'"):
        parse_config(sft.Config, {**open_run, "max_length": 64, "context": 64}, where="sft")


def test_longer_validation_data_is_not_passed_over(perform_stage: Perform, open_run: dict[str, Any], tmp_path: Path):
    said = [{"role": "user", "content": "Where is my order? " * 8}, {"role": "assistant", "content": "On its way."}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "conversations.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    (tmp_path / "short").mkdir()
    said = [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "short" / "conversations.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    settings = {**open_run, "data": [str(tmp_path / "short")], "validation": [str(tmp_path / "data")]}
    perform_stage("sft", tmp_path / "out", **settings)
    losses = [json.loads(line) for line in (tmp_path / "out" / "run_metrics.jsonl").open()]
    assert any(row.get("validation_loss") for row in losses)


def test_labels_are_taken_with_the_context_that_training_would_choose(
    perform_stage: Perform, checkpoint_path: Path, dataset_path: Path, tmp_path: Path
):
    settings = {"data": [str(dataset_path)], "teacher": str(checkpoint_path), "precision": "float32", "top_k": 4}
    perform_stage("label", tmp_path / "labels", **settings)
    assert json.loads((tmp_path / "labels" / "run_config.json").read_text())["context"] == 256
    assert "left out" not in (tmp_path / ".runs" / "labels" / "log.txt").read_text()


def test_a_student_that_answers_itself_has_room_for_an_answer(
    perform_stage: Perform, checkpoint_path: Path, tmp_path: Path
):
    said = [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "conversations.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    data = str(tmp_path / "conversations.jsonl")
    settings = {"data": [data], "init_from": str(checkpoint_path), "teacher": str(checkpoint_path)}
    on_policy = {"answers": 4, "max_tokens": 64, "share": 0.5}
    perform_stage("distill", tmp_path / "out", **settings, steps=2, on_policy=on_policy, precision="float32")
    perform_stage("distill", tmp_path / "plain", **settings, steps=2, precision="float32")
    contexts = [json.loads((tmp_path / name / "run_config.json").read_text())["context"] for name in ("plain", "out")]
    assert contexts[1] == contexts[0] + 64


def test_a_run_that_sets_everything_reads_no_lengths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings = {"max_length": 1024, "batch_tokens": 4096, "optim": {"warmup_steps": 50}}
    config = parse_config(
        distill.Config, {"data": ["x"], "init_from": "y", "teacher": "z", "epochs": 1, **settings}, where="distill"
    )
    monkeypatch.setattr(RowLengths, "read", None)
    assert defaults.adapt(config, None, None, None) is config  # type: ignore[arg-type]
