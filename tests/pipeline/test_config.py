"""Tables and flags become typed, frozen settings; every mistake names the key and says what would have been right."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from puna.pipeline.config import StageConfig, is_named_step, parse_config
from puna.pipeline.errors import ConfigError


class Shape(StageConfig):
    width: int = Field(ge=2)
    depth: int = 1


class Config(StageConfig):
    source: Path
    others: list[Path] = Field(default=[])
    named: dict[str, Path] = Field(default={})
    shape: str | Shape | None = None
    inner: Shape = Shape(width=4)
    rate: float = Field(default=0.5, le=1)
    is_fast: bool = False


def refusal(**table: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(Config, {"source": "x", **table}, where="stage.name")
    return str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    assert "unknown key 'sourse'" in refusal(sourse="y") and "Did you mean 'source'?" in refusal(sourse="y")
    assert "Did you mean" not in refusal(zebra=1)
    assert "[stage.name]" in refusal(zebra=1)


def test_an_unknown_key_in_an_inner_table_is_named_with_its_place():
    text = refusal(inner={"width": 3, "dept": 2})
    assert "'inner.dept'" in text and "Did you mean 'depth'?" in text and "one of depth, width" in text


def test_a_misspelled_key_counts_before_the_key_it_leaves_missing():
    with pytest.raises(ConfigError, match=r"unknown key 'sourcs'.*Did you mean 'source'"):
        parse_config(Config, {"sourcs": "x"}, where="stage")


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="lacks 'source'"):
        parse_config(Config, {}, where="stage")


def test_where_a_value_may_be_of_two_types_the_error_is_about_the_one_meant():
    assert "unknown key 'shape.widht'" in refusal(shape={"widht": 3}) and "'width'?" in refusal(shape={"widht": 3})
    assert "lacks 'shape.width'" in refusal(shape={"depth": 3})
    assert "shape.width = 'wide'" in refusal(shape={"width": "wide"})
    assert "shape = 5" in refusal(shape=5)


@pytest.mark.parametrize(
    "table",
    [
        {"rate": "0.5"},
        {"rate": True},
        {"rate": 1.5},
        {"rate": float("nan")},
        {"rate": float("-inf")},
        {"is_fast": "yes"},
        {"is_fast": 1},
        {"source": 5},
        {"others": "one"},
        {"others": ["one", 2]},
        {"named": {"one": 2}},
        {"inner": 5},
        {"inner": {"width": 1}},
        {"inner": {"width": 2.5}},
        {"inner": {"width": True}},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(table: dict[str, Any]):
    key = next(iter(table))
    text = refusal(**table)
    assert key in text and "; expected" in text
    assert "pydantic" not in text and "Input" not in text


def test_integers_are_numbers():
    assert parse_config(Config, {"source": "x", "rate": 1}, where="stage").rate == 1.0


def test_settings_cannot_be_changed():
    config = parse_config(Config, {"source": "x"}, where="stage")
    with pytest.raises(ValidationError):
        config.rate = 0.1  # pyright: ignore[reportAttributeAccessIssue]


def test_every_path_is_an_input_under_its_place():
    table = {"source": "a", "others": ["b", "c"], "named": {"teacher": "d"}}
    config = parse_config(Config, table, where="stage")
    places = {"source": "a", "others.0": "b", "others.1": "c", "named.teacher": "d"}
    assert config.inputs() == {name: Path(path) for name, path in places.items()}


def test_a_table_of_tables_is_several_steps_unless_the_tables_are_settings():
    assert is_named_step(Config, {"one": {"source": "x"}, "two": {}})
    assert not is_named_step(Config, {"inner": {"width": 3}})
    assert not is_named_step(Config, {"source": "x", "one": {}})
    assert not is_named_step(Config, {})
