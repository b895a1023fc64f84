"""The stage table: kinds are of the closed list, and every reference of the shipped recipes joins fitting kinds."""

import re
from pathlib import Path

import pytest

from puna.pipeline.config import StageConfig
from puna.pipeline.execution.recipe import Recipe, config_class
from puna.pipeline.stages import KINDS, STAGES, Stage

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
HOOKS = ("has_preview", "is_parallel", "inputs", "made_of", "stated_licence", "requires_receipts", "estimate")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.verb)
def test_a_stage_names_known_kinds_once(stage: Stage):
    assert set(stage.writes) and {*stage.reads, *stage.writes} <= KINDS.keys()
    assert len(set(stage.writes)) == len(stage.writes)


def test_every_kind_but_raw_is_written_by_a_stage():
    assert {kind for stage in STAGES for kind in stage.writes} == KINDS.keys() - {"raw"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_step_of_a_shipped_recipe_reads_what_the_step_above_writes(path: Path):
    recipe = Recipe.read(path)
    writes = {step.name: set(step.stage.writes) for step in recipe.steps}
    for step in recipe.steps:
        for name in re.findall(r"'@([\w.]+)", str(step.table)):
            assert writes[name] & set(step.stage.reads), f"[{step.name}] reads @{name}"


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.verb)
def test_a_config_overrides_declared_hooks_only(stage: Stage):
    declared = {name for name in dir(StageConfig) if not name.startswith("_")}
    assert declared >= set(HOOKS)
    config = config_class(stage)
    assert hasattr(config, "parallel") or "parallel" in config.model_fields or not config.is_parallel
    if "licence" in config.model_fields:
        assert config.stated_licence is not StageConfig.stated_licence
