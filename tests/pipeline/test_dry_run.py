"""A dry run says what raise would do, why, how long and with how much memory. It writes nothing."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from preference_rows import row, write
from rich.console import Console

from puna import cli
from puna.pipeline.config import former_names, parse_config
from puna.pipeline.errors import ConfigError
from puna.pipeline.estimate import Estimate, Known, NotKnownYetError, Sketch
from puna.pipeline.execution.dry_run import Cost, ForeseenStep, Pace, foresee
from puna.pipeline.execution.executor import COST
from puna.pipeline.execution.recipe import Recipe, config_class, override
from puna.pipeline.execution.walk import configs_of, dry_run, raise_recipe
from puna.pipeline.stages import STAGES
from puna.training import sft

STEPS = """
out = "{folder}/out"

[import]
source = "{checkpoint}"

[ingest.train]
source = "{folder}/talks"
format = "records"

[ingest.held_out]
source = "{folder}/held_out"
format = "records"

[sft.teacher]
init_from = "@import"
data = ["@ingest.train"]
precision = "float32"
epochs = 2

[prune]
checkpoint = "@sft.teacher"
data = ["@ingest.held_out"]
calibration = ["@ingest.train"]
size = {{ hidden_dim = 16 }}
num_tokens = 400
calibration_tokens = 400

[label]
teacher = "@sft.teacher"
data = ["@ingest.train"]
top_k = 8

[distill]
init_from = "@prune"
labels = "@label"
steps = 3

[evaluate]
tasks = ["@ingest.held_out"]
max_tokens = 4
checkpoints.teacher = "@sft.teacher"
checkpoints.mine = "@distill"
"""
NAMES = ["import", "ingest.train", "ingest.held_out", "sft.teacher", "prune", "label", "distill", "evaluate"]

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture
def recipe(tmp_path: Path, dataset_path: Path, checkpoint_path: Path) -> Recipe:
    (tmp_path / "talks").mkdir()
    shutil.copy(dataset_path / "conversations.jsonl", tmp_path / "talks")
    (tmp_path / "held_out").mkdir()
    talks = (dataset_path / "conversations.jsonl").read_text()
    (tmp_path / "held_out" / "conversations.jsonl").write_text(talks.replace("Where is", "What of"))
    (tmp_path / "my.toml").write_text(STEPS.format(folder=tmp_path, checkpoint=checkpoint_path))
    return Recipe.read(tmp_path / "my.toml")


def foreseen(recipe: Recipe, **settings: Any) -> dict[str, ForeseenStep]:
    changed = override(recipe, settings)
    return {each.step.name: each for each in foresee(changed, configs_of(changed))}


def states(recipe: Recipe, **settings: Any) -> list[str]:
    return [each.status.state for each in foreseen(recipe, **settings).values()]


def files_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_recipe_that_never_ran_is_estimated_from_its_raw_data_to_its_last_step(recipe: Recipe, tmp_path: Path):
    before = files_below(tmp_path)
    found = foreseen(recipe)
    assert list(found) == NAMES and {each.status.state for each in found.values()} == {"would run"}
    assert all(each.estimate.seconds and each.estimate.memory_bytes for each in found.values())
    assert "12 conversations" in found["ingest.train"].estimate.note
    assert "24 questions" in found["evaluate"].estimate.note  # two turns of each of 12 conversations
    assert "3 steps" in found["distill"].estimate.note
    assert files_below(tmp_path) == before, "nothing is written"


def test_foreseen_steps_are_the_steps_that_training_takes(recipe: Recipe):
    note = foreseen(recipe)["sft.teacher"].estimate.note
    raise_recipe(recipe, Console(quiet=True), until="sft.teacher")
    rows = (recipe.out / "sft.teacher" / "run_metrics.jsonl").read_text().splitlines()
    chosen = json.loads((recipe.out / "sft.teacher" / "run_facts.json").read_text())["chosen"]
    assert note.startswith(f"{len(rows)} steps, {json.loads(rows[-1])['tokens']:,} tokens")
    current = former_names(sft.Config)
    assert all(f"{current.get(name, name)} = {value}" in note for name, value in chosen.items())


def test_what_is_there_is_said_and_what_changed_is_named(recipe: Recipe, tmp_path: Path):
    raise_recipe(recipe, Console(quiet=True))
    assert set(states(recipe)) == {"there already"}
    found = foreseen(recipe, **{"distill.optim.lr": 2e-3, "distill.steps": 2})
    assert found["distill"].status.reasons == ("steps was 3, and is 2", "optim.lr was 0.001, and is 0.002")
    assert [each.status.state for each in found.values()][-2:] == ["would run", "may run"]
    assert found["evaluate"].status.reasons == ("unless distill comes out as before",)
    path = tmp_path / "talks" / "conversations.jsonl"
    path.write_text(path.read_text().replace("Where is", "What of"))
    found = foreseen(recipe)
    assert found["ingest.train"].status.reasons == (f"source changed: {tmp_path / 'talks'}",)
    assert found["import"].status.state == "there already" and found["sft.teacher"].status.state == "may run"


def test_a_file_that_was_removed_an_input_that_is_new_and_an_interrupted_run_are_told_apart(recipe: Recipe):
    raise_recipe(recipe, Console(quiet=True))
    (recipe.out / "evaluate" / "scores.json").unlink()
    assert foreseen(recipe)["evaluate"].status.reasons == ("a file of it is missing or was cut",)
    added = foreseen(recipe, **{"evaluate.checkpoints.base": "@import"})["evaluate"].status.reasons
    assert added == ("checkpoints.base is new",)
    run = recipe.out / ".runs" / "label"
    key = json.loads((recipe.out / "label" / "manifest.json").read_text())["key"]
    shutil.rmtree(recipe.out / "label")
    (run / "key").write_text(key)
    assert foreseen(recipe)["label"].status.state == "would go on"
    (run / "key").write_text("another")
    assert foreseen(recipe)["label"].status.state == "would run"


def test_a_failed_receipt_of_an_artifact_is_a_problem(recipe: Recipe):
    raise_recipe(recipe, Console(quiet=True), until="import")
    path = recipe.out / "import" / "receipts" / "weights_kept.json"
    path.write_text(path.read_text().replace('"held": true', '"held":false'))
    found = foreseen(recipe)["import"]
    assert found.status.state == "there already"
    (problem,) = found.problems
    assert problem.startswith("would stop: ") and "weights_kept" in problem


@pytest.mark.parametrize(
    ("settings", "step", "text"),
    [
        ({"sft.teacher.optim.warmup_steps": 50}, "sft.teacher", "optim.warmup_steps = 50: all of the"),
        ({"sft.teacher.batch_tokens": 65_536}, "sft.teacher", "one batch holds all the data"),
        ({"sft.teacher.epochs": 50}, "sft.teacher", "the data is read 50 times"),
        ({"distill.steps": 900}, "distill", "steps = 900: the data is read"),
        ({"sft.teacher.max_length": 1024}, "sft.teacher", "the model reads at most 256 tokens"),
        ({"sft.teacher.max_length": 16}, "sft.teacher", "nothing of 12 rows would be trained"),
        ({"evaluate.max_questions": 20}, "evaluate", "20 questions tell scores apart by about 22 points"),
        ({"prune.size": {"hidden_dim": 64}}, "prune", "hidden_dim = 64; expected at most the parent's 32"),
        ({"ingest.train.source": "nowhere"}, "ingest.train", "source = nowhere does not exist"),
        ({"ingest.train.format": "taskmaster"}, "ingest.train", "no row of format 'taskmaster'"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_anything_runs(
    recipe: Recipe, settings: dict[str, Any], step: str, text: str
):
    assert text in " / ".join(foreseen(recipe, **settings)[step].problems)


def test_rows_beyond_the_context_are_counted(recipe: Recipe, tmp_path: Path):
    said = [{"role": "user", "content": "Where is my order? " * 200}, {"role": "assistant", "content": "On its way."}]
    with (tmp_path / "talks" / "conversations.jsonl").open("a") as file:
        file.writelines(json.dumps({"messages": said}) + "\n" for _ in range(3))
    problem = foreseen(recipe, **{"sft.teacher.max_length": 256})["sft.teacher"].problems[0]
    assert problem.startswith("max_length = 256: 20% of the rows are longer and are skipped")


def test_settings_that_fit_are_not_complained_about(recipe: Recipe, tmp_path: Path):
    for path in tmp_path.glob("*/conversations.jsonl"):
        path.write_text(path.read_text() * 20)
    found = foreseen(recipe, **{"distill.steps": 40})
    assert not [problem for each in found.values() for problem in each.problems]


def test_what_only_a_step_can_tell_is_called_so(recipe: Recipe):
    found = foreseen(recipe, **{"import.source": None, "import.hub": "owner/model"})
    assert found["import"].unknown == "no estimate"
    assert found["sft.teacher"].unknown == "known once import has run"
    assert found["label"].unknown.startswith("known once ")
    assert found["ingest.train"].estimate.seconds


def test_a_sketch_stands_for_what_lies_inside_its_artifact():
    known = Known()
    known.pending[Path("out/ingest")] = sketch = Sketch(num_rows={"conversations": 3})
    known.pending[Path("out/import")] = None
    assert known.sketch(Path("out/ingest/conversations.jsonl")) is sketch
    assert known.sketch(Path("out/ingest.train")) is None
    with pytest.raises(NotKnownYetError):
        known.sketch(Path("out/import"))


def test_the_pace_of_finished_steps_scales_the_forecast_of_others(recipe: Recipe):
    step = foreseen(recipe)["sft.teacher"]
    step = ForeseenStep(step.step, step.status, Estimate(seconds=100.0))
    pace = Pace()
    assert pace.seconds(step) == 100.0
    pace.add("ingest", Cost(6.0, 1.0))
    assert pace.seconds(step) == 100.0, "a second of work tells nothing about an hour of other work"
    pace.add("label", Cost(300.0, 100.0))
    assert pace.seconds(step) == pytest.approx(100 * 306 / 101)
    pace.add("sft", Cost(50.0, 100.0))
    assert pace.seconds(step) == 50.0
    assert pace.seconds(ForeseenStep(step.step, step.status, Estimate(), earlier=Cost(7.0, None))) == 7.0


def test_every_artifact_says_what_it_took_and_a_second_forecast_uses_it(recipe: Recipe):
    raise_recipe(recipe, Console(quiet=True), until="sft.teacher")
    cost = json.loads((recipe.out / "sft.teacher" / COST).read_text())
    assert 0 < cost["seconds"] < 60 and cost["foreseen_seconds"] > 0
    cost["seconds"] = 10 * cost["foreseen_seconds"]
    path = recipe.out / "sft.teacher" / COST
    path.write_text(json.dumps(cost))
    found = foreseen(recipe, **{"sft.teacher.seed": 1})["sft.teacher"]
    pace = Pace()
    assert found.earlier
    pace.add("sft", found.earlier)
    assert pace.seconds(found) == pytest.approx(10 * (found.estimate.seconds or 0))


def test_raising_counts_its_steps_and_ends_at_the_step_asked_for(recipe: Recipe, tmp_path: Path):
    with (tmp_path / "log").open("w") as file:
        raise_recipe(recipe, Console(file=file, width=200), until="ingest.held_out")
        raise_recipe(recipe, Console(file=file, width=200), until="sft.teacher")
    said = (tmp_path / "log").read_text()
    assert said.index(" steps: a model learns little") < said.index("Step 1 of 4")
    assert "Step 3 of 3: ingest.held_out (about" in said and " left)" in said
    assert "Step 3 of 4: ingest.held_out, there already" in said and "Step 4 of 4: sft.teacher (about" in said
    assert sorted(path.name for path in recipe.out.iterdir()) == [".runs", *sorted(NAMES[:4])]


def puna(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["puna", "raise", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise


def test_the_command_line_prints_json_alone(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = ["--dry-run", "--json", "--until", "sft.teacher", "--sft.teacher.epochs", "1"]
    puna(monkeypatch, str(recipe.path), *flags)
    told = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in told["steps"]] == NAMES[:4] and told["without_estimate"] == []
    assert told["seconds"] == pytest.approx(sum(each["seconds"] for each in told["steps"]))
    assert told["memory_bytes"] == max(each["memory_bytes"] for each in told["steps"])
    assert not recipe.out.exists()


@pytest.mark.parametrize(
    ("flags", "text"), [(["--until", "sft.techer"], "Did you mean 'sft.teacher'?"), (["--json"], "--dry-run")]
)
def test_a_step_that_is_none_and_json_without_a_dry_run_are_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, flags: list[str], text: str
):
    with pytest.raises(SystemExit, match=re.escape(text)):
        puna(monkeypatch, str(recipe.path), *flags)
    assert not recipe.out.exists()


def test_the_table_names_steps_states_totals_and_problems(recipe: Recipe, tmp_path: Path):
    with (tmp_path / "log").open("w") as file:
        dry_run(override(recipe, {"sft.teacher.optim.warmup_steps": 50}), Console(file=file, width=200))
    said = (tmp_path / "log").read_text()
    assert all(name in said for name in NAMES)
    assert "sft.teacher: optim.warmup_steps = 50" in said
    assert "8 of 8 steps would run: about" in said and "of this machine's" in said


def test_steps_without_an_estimate_have_no_time(tmp_path: Path):
    """A total of 0 seconds would be a promise."""
    path = tmp_path / "r.toml"
    path.write_text(f'out = "{tmp_path / "out"}"\n[ingest]\nsource = "{tmp_path / "missing"}"\nlicence = "own"\n')
    with (tmp_path / "log").open("w") as file:
        dry_run(Recipe.read(path), Console(file=file, width=200))
    said = (tmp_path / "log").read_text()
    assert "1 of 1 steps would run: none of them has an estimate of its time" in said and "0.0 s" not in said


def test_a_recipe_without_a_step_is_refused(tmp_path: Path):
    (tmp_path / "r.toml").write_text('out = "x"\n')
    with pytest.raises(ConfigError, match="has no step; expected at least one table named ingest"):
        Recipe.read(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        ("pretrain", {"size": {"dim": 16, "hidden_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}}),
        ("pretrain", {"init_from": "checkpoint", "drill_share": 0.5}),
        ("sft", {"init_from": "checkpoint", "adapter": {"rank": 4}, "checkpoint_activations": True}),
        ("distill", {"init_from": "checkpoint", "teacher": "checkpoint", "validation": ["dataset"]}),
        ("dpo", {"init_from": "checkpoint", "data": ["preferences"]}),
        ("reward", {"init_from": "checkpoint", "data": ["preferences"]}),
    ],
)
def test_every_way_to_train_is_estimated(
    verb: str,
    settings: dict[str, Any],
    checkpoint_path: Path,
    dataset_path: Path,
    tokenizer_path: Path,
    tmp_path: Path,
):
    write(tmp_path / "preferences", [row(n) for n in range(12)])
    paths = {"checkpoint": checkpoint_path, "dataset": dataset_path, "preferences": tmp_path / "preferences"}
    table = json.dumps({"data": ["dataset"], "epochs": 1, **settings})
    for name, path in paths.items():
        table = table.replace(f'"{name}"', json.dumps(str(path)))
    table = json.loads(table)
    if "size" in table:
        table["tokenizer"] = str(tokenizer_path)
    stage = next(stage for stage in STAGES if stage.verb == verb)
    estimate = parse_config(config_class(stage), table, where=verb).estimate(Known())
    assert estimate.seconds and estimate.memory_bytes and " steps, " in estimate.note
    assert estimate.sketch and estimate.sketch.network.dim == 16
