"""Copying drills: what is trained in them can be known, and nothing else is trained."""

import random

from hypothesis import given
from hypothesis import strategies as st

from puna.data.augment.drills import draw_drill, draw_run_drill


@given(st.lists(st.integers(0, 500), min_size=5, max_size=200), st.integers(0, 2**32))
def test_every_trained_token_follows_the_one_it_followed_before(row: list[int], seed: int) -> None:
    drill = draw_drill(row, random.Random(seed))
    body = drill.ids[1:]
    first = body[: len(body) // 2]
    assert sorted(first) == sorted(body[len(first) :])
    assert len(set(first)) == len(first) and set(first) <= set(row[1:])
    for index, is_trained in enumerate(drill.mask):
        if is_trained:
            before, token = drill.ids[index - 1], drill.ids[index]
            assert first[first.index(before) + 1] == token


def test_a_drill_trains_about_a_third_of_its_tokens() -> None:
    source = random.Random(0)
    drills = [draw_drill(range(300), source) for _ in range(300)]
    share = sum(sum(drill.mask) for drill in drills) / sum(len(drill.ids) for drill in drills)
    assert 0.25 < share < 0.45


def test_a_drill_depends_on_its_row_and_source_alone() -> None:
    row = list(range(50))
    assert draw_drill(row, random.Random(3)) == draw_drill(row, random.Random(3))
    assert draw_drill(row, random.Random(3)) != draw_drill(row, random.Random(4))


@given(st.lists(st.integers(0, 500), min_size=3, max_size=200, unique=True), st.integers(0, 2**32))
def test_each_trained_token_of_a_run_drill_follows_from_the_key_of_its_string(row: list[int], seed: int) -> None:
    drill = draw_run_drill(row, random.Random(seed))
    half = 1 + (len(drill.ids) - 1) // 2
    first, second = drill.ids[1:half], drill.ids[half:]
    assert sorted(first) == sorted(second) and set(first) <= set(row[1:])
    assert not any(drill.mask[:half]) and len(drill.mask) == len(drill.ids)
    starts = [place for place, is_trained in enumerate(drill.mask[half:]) if not is_trained]
    assert starts[0] == 0 and len(starts) <= 4
    for start, end in zip(starts, [*starts[1:], len(second)], strict=True):
        key_and_string = second[start:end]
        assert any(first[at : at + len(key_and_string)] == key_and_string for at in range(len(first)))


def test_strings_of_run_drills_hold_runs_of_equal_tokens() -> None:
    source = random.Random(0)
    drills = [draw_run_drill(range(300), source) for _ in range(300)]
    pairs = [pair for drill in drills for pair in zip(drill.ids[1:], drill.ids[2:], strict=False)]
    assert 0.2 < sum(a == b for a, b in pairs) / len(pairs) < 0.6
