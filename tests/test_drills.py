"""Copying drills: what is trained in them can be known, and nothing else is trained."""

import random

from hypothesis import given
from hypothesis import strategies as st

from puna.data.drills import draw_drill


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
