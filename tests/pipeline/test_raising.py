"""A recipe runs from top to bottom; what is there already does not run again, what changed does with all after it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from puna.corpus.ingest import ingest
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest, Receipt
from puna.pipeline.errors import ArtifactError, ConfigError, DataError, ReceiptError
from puna.pipeline.execution.recipe import Recipe, override, resolve
from puna.pipeline.execution.walk import raise_recipe, run_recipe

RECIPE = """
out = "{folder}/out"

[ingest.pages]
source = "{folder}/pages"
licence = "CC0"

[ingest.talks]
source = "{folder}/talks"
format = "records"

[tokenizer]
data = ["@ingest.pages", "@ingest.talks"]
vocab_size = 520

[sft.teacher]
data = ["@ingest.talks"]
tokenizer = "@tokenizer"
size = {{dim = 16, hidden_dim = 16, num_layers = 1, num_heads = 2, num_kv_heads = 1}}
max_length = 256
batch_tokens = 512
steps = 1

[sft.student]
data = ["@ingest.talks"]
init_from = "@sft.teacher"
max_length = 256
batch_tokens = 512
steps = 1

[sft.student.optim]
lr = 0.02
"""
pytestmark = pytest.mark.usefixtures("no_picture")

STEPS = ["ingest.pages", "ingest.talks", "tokenizer", "sft.teacher", "sft.student"]


@pytest.fixture
def recipe(tmp_path: Path, dataset_path: Path) -> Recipe:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "opening.md").write_text("We open at nine and we close at six.")
    (tmp_path / "talks").mkdir()
    shutil.copy(dataset_path / "conversations.jsonl", tmp_path / "talks")
    return write_recipe(tmp_path, RECIPE.format(folder=tmp_path))


def test_a_recipe_runs_from_python_up_to_a_step(recipe: Recipe):
    artifacts = run_recipe(str(recipe.path), {"ingest.pages.licence": "MIT"}, until="ingest.talks")
    assert list(artifacts) == ["ingest.pages", "ingest.talks"]
    assert artifact.read_manifest(artifacts["ingest.pages"]).licences == ["mit"]


def write_recipe(folder: Path, text: str) -> Recipe:
    (folder / "my.toml").write_text(text)
    return Recipe.read(folder / "my.toml")


def steps_that_run(recipe: Recipe, **settings: Any) -> list[str]:
    """Raise the recipe and name the steps whose artifact was made anew."""

    def marks() -> dict[str, int]:
        paths = {step.name: recipe.out / step.name / "manifest.json" for step in recipe.steps}
        return {name: path.stat().st_ino for name, path in paths.items() if path.exists()}

    before = marks()
    raise_recipe(override(recipe, settings), Console(quiet=True))
    return [name for name, mark in marks().items() if before.get(name) != mark]


def test_a_second_raise_runs_nothing(recipe: Recipe):
    assert steps_that_run(recipe) == STEPS
    assert steps_that_run(recipe) == []


def test_a_changed_setting_reruns_its_step_and_those_after_it(recipe: Recipe):
    steps_that_run(recipe)
    assert steps_that_run(recipe, **{"sft.student.seed": 1}) == ["sft.student"]
    assert steps_that_run(recipe, **{"sft.student.seed": 1, "sft.teacher.seed": 1}) == ["sft.teacher", "sft.student"]
    assert steps_that_run(recipe, **{"sft.student.seed": 1, "sft.teacher.seed": 1}) == []


def test_a_changed_raw_file_reruns_all_that_comes_from_it(recipe: Recipe, tmp_path: Path):
    steps_that_run(recipe)
    path = tmp_path / "talks" / "conversations.jsonl"
    path.write_text(path.read_text().replace("Where is", "What of"))
    assert steps_that_run(recipe) == ["ingest.talks", "tokenizer", "sft.teacher", "sft.student"]


def test_a_rerun_that_makes_the_same_content_stops_there(recipe: Recipe):
    steps_that_run(recipe)
    assert steps_that_run(recipe, **{"ingest.pages.include": ["*.md"]}) == ["ingest.pages"]


def test_the_same_files_elsewhere_are_the_same_input(recipe: Recipe, tmp_path: Path):
    steps_that_run(recipe)
    (tmp_path / "talks").rename(tmp_path / "moved")
    assert steps_that_run(recipe, **{"ingest.talks.source": str(tmp_path / "moved")}) == []


def test_an_artifact_that_lost_a_file_is_made_again(recipe: Recipe):
    steps_that_run(recipe)
    (recipe.out / "sft.student" / "model.safetensors").unlink()
    assert steps_that_run(recipe) == ["sft.student"]


def test_an_input_that_was_altered_is_refused_by_name(recipe: Recipe):
    steps_that_run(recipe)
    path = recipe.out / "ingest.talks" / "conversations.jsonl"
    path.write_text(path.read_text().replace("parcel", "letter"))
    with pytest.raises(ArtifactError, match=r"conversations\.jsonl was altered"):
        steps_that_run(recipe, **{"sft.teacher.seed": 1})


def test_an_interrupted_raise_goes_on_where_it_stopped(recipe: Recipe):
    with pytest.raises(DataError):
        steps_that_run(recipe, **{"sft.teacher.max_length": 16, "sft.student.max_length": 16})
    assert [path.name for path in sorted(recipe.out.iterdir())] == [".runs", *sorted(STEPS[:3])]
    assert steps_that_run(recipe) == STEPS[3:]


def test_override_wins_over_the_file_at_any_depth_and_leaves_the_rest(recipe: Recipe):
    changed = override(recipe, {"sft.student.optim.clip": 2.0, "sft.student.optim.lr": 0.1, "ingest.pages.source": "x"})
    assert changed.steps[-1].table["optim"] == {"lr": 0.1, "clip": 2.0}
    assert changed.steps[0].table == {"source": "x", "licence": "CC0"}
    assert recipe.steps[-1].table["optim"] == {"lr": 0.02}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("sft.techer.steps", "names no step"),
        ("sft.steps", "names no step"),
        ("steps", "names no step"),
        ("sft.student.steps.more", "steps = 1"),
    ],
)
def test_a_flag_that_fits_no_step_is_refused(recipe: Recipe, key: str, text: str):
    with pytest.raises(ConfigError, match=text):
        override(recipe, {key: 1})


def test_steps_stand_in_the_order_of_the_file(tmp_path: Path):
    text = "[sft.b]\nsteps = 1\n  [ingest]\n[sft.a] # last\n[sft.a.optim]\nlr = 1"
    assert [step.name for step in write_recipe(tmp_path, text).steps] == ["sft.b", "ingest", "sft.a"]


def test_a_reference_becomes_the_path_of_a_step_above(recipe: Recipe):
    table = resolve(recipe.steps[2], recipe)
    assert table["data"] == [str(recipe.out / "ingest.pages"), str(recipe.out / "ingest.talks")]
    inner = override(recipe, {"tokenizer.data": [{"deep": "@ingest.pages/documents.jsonl"}]})
    assert resolve(inner.steps[2], inner)["data"] == [{"deep": str(recipe.out / "ingest.pages" / "documents.jsonl")}]


@pytest.mark.parametrize("name", ["@ingest.talk", "@sft.student", "@tokenizer", "@"])
def test_a_reference_to_no_step_above_is_refused_before_anything_runs(recipe: Recipe, name: str):
    with pytest.raises(ConfigError, match=rf"'{name}' in \[tokenizer\] refers to no step above") as caught:
        steps_that_run(recipe, **{"tokenizer.data": [name]})
    assert not recipe.out.exists()
    assert ("Did you mean 'ingest.talks'?" in str(caught.value)) == (name == "@ingest.talk")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[sfd]", "'sfd'.*Did you mean 'sft'"),
        ("sft = 5", "'sft'"),
        ("[[sft]]", "'sft'"),
        ("out = 5", "out = 5"),
        ("[sft", "cannot be read"),
        ("[sft]\n[sft]", "cannot be read"),
        ("[tokenizer]\ndata = ['x']\nvocab_sise = 600", "unknown key 'vocab_sise'"),
        ("[tokenizer.one]\ndata = ['x']\nvocab_size = '600'", r"\[tokenizer.one\] vocab_size = '600'"),
    ],
)
def test_a_recipe_that_cannot_be_understood_is_refused(tmp_path: Path, text: str, error: str):
    with pytest.raises(ConfigError, match=error):
        raise_recipe(write_recipe(tmp_path, text), Console(quiet=True))


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        Recipe.read(tmp_path / "none.toml")


def test_two_runs_at_once_are_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    first_run, refused = ingest.run, []

    def run_while_another_tries(config: ingest.Config, run: Any) -> None:
        monkeypatch.setattr(ingest, "run", first_run)
        with pytest.raises(ArtifactError, match="another run"):
            raise_recipe(recipe, Console(quiet=True))
        refused.append(run.stage)
        first_run(config, run)

    monkeypatch.setattr(ingest, "run", run_while_another_tries)
    assert steps_that_run(recipe) == STEPS and refused == ["ingest"]


def test_nothing_of_the_users_is_replaced(recipe: Recipe, tmp_path: Path, perform_stage: Any):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.md").write_text("dear")
    with pytest.raises(ArtifactError, match="not an artifact"):
        perform_stage("ingest", tmp_path / "mine", source=str(tmp_path / "pages"))
    perform_stage("ingest", tmp_path / "data", source=str(tmp_path / "pages"))
    with pytest.raises(ArtifactError, match="made by 'ingest'"):
        perform_stage("tokenizer", tmp_path / "data", data=[str(tmp_path / "talks")], vocab_size=520)
    with pytest.raises(ConfigError, match="overlap"):
        perform_stage("tokenizer", tmp_path / "data", data=[str(tmp_path / "data")], vocab_size=520)
    with pytest.raises(ConfigError, match="overlap"):
        perform_stage("ingest", tmp_path / "pages" / "out", source=str(tmp_path / "pages"))
    assert (tmp_path / "mine" / "letters.md").exists() and artifact.verify(tmp_path / "data")


def test_a_receipt_that_does_not_hold_stops_later_stages_unless_ignored(
    tmp_path: Path, dataset_path: Path, perform_stage: Any
):
    data = tmp_path / "data"
    with artifact.writing(data) as partial:
        shutil.copy(dataset_path / "conversations.jsonl", partial)
        Receipt("kl_divergence", "parent", 0.5, 0.1, held=False).save(partial)
        artifact.commit(partial, data, Manifest("dataset", "quantize", "k", {}, {}, {}))
    for source in (data, data / "conversations.jsonl"):
        with pytest.raises(ReceiptError, match=r"kl_divergence is 0\.5"):
            perform_stage("tokenizer", tmp_path / "out", data=[str(source)], vocab_size=520)
    assert not (tmp_path / "out").exists()
    assert perform_stage("tokenizer", tmp_path / "out", data=[str(data)], vocab_size=520, ignore_receipts=True)


def test_a_stage_whose_own_receipt_does_not_hold_fails_and_keeps_what_it_made(
    tmp_path: Path, dataset_path: Path, checkpoint_path: Path, perform_stage: Any
):
    out = tmp_path / "int8"
    settings = {"checkpoint": str(checkpoint_path), "data": [str(dataset_path)], "tolerance_kl": 0.0, "num_tokens": 100}
    for _ in range(2):
        with pytest.raises(ReceiptError, match="expected at most 0"):
            perform_stage("quantize", out, **settings)
        assert artifact.is_artifact(out)
    assert not perform_stage("quantize", out, **settings, ignore_receipts=True)


def test_a_raw_folder_with_receipts_of_a_shop_is_only_data(tmp_path: Path, perform_stage: Any):
    (tmp_path / "shop" / "receipts").mkdir(parents=True)
    (tmp_path / "shop" / "receipts" / "may.json").write_text('{"total": 12}')
    (tmp_path / "shop" / "page.md").write_text("We sell bicycles.")
    assert perform_stage("ingest", tmp_path / "out", source=str(tmp_path / "shop"))


def test_an_artifact_tells_where_it_comes_from_and_under_which_terms(recipe: Recipe):
    steps_that_run(recipe)
    manifest = artifact.read_manifest(recipe.out / "tokenizer")
    assert (
        manifest.licences == ["cc0-1.0", "unknown"]
        and manifest.kind == "tokenizer"
        and manifest.config["vocab_size"] == 520
    )
    assert {role: entry["path"] for role, entry in manifest.inputs.items()} == {
        "data.0": "../ingest.pages",
        "data.1": "../ingest.talks",
    }
    assert json.loads((recipe.out / "tokenizer" / "run_config.json").read_text())["vocab_size"] == 520


def test_what_is_replaced_is_said(recipe: Recipe, tmp_path: Path, perform_stage: Any):
    (tmp_path / "pages" / "new.md").write_text("We open at ten.")
    log = tmp_path / ".runs" / "data" / "log.txt"
    perform_stage("ingest", tmp_path / "data", source=str(tmp_path / "pages"))
    assert "is replaced" not in (log.read_text() if log.exists() else "")
    perform_stage("ingest", tmp_path / "data", source=str(tmp_path / "pages"), licence="own")
    assert f"{tmp_path / 'data'} was made from other settings or inputs" in log.read_text()
