"""The language of docstrings and settings: pronouns stay few, descriptions stand alone."""

from pathlib import Path

import pytest
from language import descriptions, pronouns_and_words, python_files, stands_alone

PUNA = Path(__file__).parents[2] / "src" / "puna"
# Pronouns and relatives per 1,000 docstring words of a room; a ceiling only goes down.
CEILINGS = {
    "agents": 12,
    "cli.py": 16,
    "conversion": 15,
    "corpus": 17,
    "data": 20,
    "evaluation": 18,
    "formats": 17,
    "inference": 13,
    "model": 15,
    "pipeline": 15,
    "planning": 14,
    "serving": 16,
    "testing": 20,
    "training": 14,
}


@pytest.mark.parametrize("room", CEILINGS)
def test_docstrings_name_things(room: str):
    pronouns, words = pronouns_and_words(python_files(PUNA / room))
    assert 1000 * pronouns / words <= CEILINGS[room]


def test_every_room_has_a_ceiling():
    rooms = {path.name for path in PUNA.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__.py", "__main__.py", "__pycache__", "py.typed"} == set(CEILINGS)


@pytest.mark.parametrize("room", CEILINGS)
def test_descriptions_of_settings_stand_alone(room: str):
    files = python_files(PUNA / room)
    short = [name for file in files for name, text in descriptions(file) if not stands_alone(text)]
    assert not short
