"""Two cuts of one text share their smallest common spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.data.spans import align
from puna.pipeline.errors import DataError


def cut(text: bytes, places: set[int]) -> list[bytes]:
    ends = sorted({place for place in places if 0 < place < len(text)} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.binary(min_size=1, max_size=40), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_spans_are_the_text_between_common_boundaries(text: bytes, places: set[int], others: set[int]):
    tokens, other = cut(text, places), cut(text, others)
    spans = align(tokens, other)
    parts = [b"".join(tokens[span.first : span.end]) for span in spans]
    assert parts == [b"".join(other[span.other_first : span.other_end]) for span in spans]
    assert parts == cut(text, places & others)


def test_other_text_is_refused():
    with pytest.raises(DataError, match="spell a text differently"):
        align([b"one", b" two"], [b"one", b" too"])
