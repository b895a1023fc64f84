"""The public Python API: names are importable, documented, typed and imported lazily."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import puna


@pytest.mark.parametrize("name", puna.__all__)
def test_a_public_name_is_importable_and_has_an_example(name: str):
    value = getattr(puna, name)
    assert value.__module__.startswith("puna.")
    assert "Example:" in (inspect.getdoc(value) or "")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Chekpoint"):
        _ = puna.Chekpoint  # pyright: ignore[reportAttributeAccessIssue]


def test_dir_lists_the_public_names():
    assert set(puna.__all__) <= set(dir(puna))


def test_importing_puna_loads_nothing_heavy():
    program = "import puna, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pydantic", "rich", "puna.pipeline"} & set(done.stdout.split())


def test_the_package_is_marked_as_typed():
    assert (Path(puna.__file__).parent / "py.typed").is_file()


def test_type_checkers_see_every_public_name():
    source = Path(puna.__file__).read_text()
    typed, _, lazy = source.partition("_MODULES")
    for name in puna.__all__:
        assert f"import {name}" in typed or f", {name}" in typed
        assert f'"{name}": "' in lazy
