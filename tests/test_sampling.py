"""What the engine samples with: the choice among logits, and text that is never taken back."""

import itertools

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from puna.engine.choose import choose
from puna.engine.text import TextStream


def test_choices_follow_the_tempered_distribution_and_the_nucleus():
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    num_draws = 1000
    draws = [(index + 0.5) / num_draws for index in range(num_draws)]
    logits = probs.log().expand(num_draws, -1)

    def shares(temperature: float, top_p: float) -> torch.Tensor:
        ids = choose(logits, [temperature] * num_draws, [top_p] * num_draws, draws)
        return torch.bincount(torch.tensor(ids), minlength=4) / num_draws

    def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return bool((found - expected).abs().max() <= 2 / num_draws)

    assert close(shares(1.0, 1.0), probs)
    assert close(shares(2.0, 1.0), probs.sqrt() / probs.sqrt().sum())
    # 0.5 + 0.25 stays below 0.8, so the token that crosses it (0.15) is kept and the last is not.
    assert close(shares(1.0, 0.8), torch.tensor([0, 0.5, 0.15, 0.25]) / 0.9)
    assert close(shares(1.0, 0.4), torch.tensor([0, 1.0, 0, 0]))
    assert close(shares(0.0, 1.0), torch.tensor([0, 1.0, 0, 0]))


def test_a_nucleus_may_be_wider_than_the_usual_candidates():
    probs = torch.full((1000,), 0.4 / 900)
    probs[100:200] = 0.6 / 100
    logits = torch.stack([probs, torch.ones(1000)]).log().repeat(2000, 1)
    draws = [(index // 2 + 0.5) / 2000 for index in range(4000)]
    for top_p, num_kept, num_kept_of_flat in ((0.5, 84, 500), (0.8, 550, 800)):
        ids = torch.tensor(choose(logits, [1.0] * 4000, [top_p] * 4000, draws)).view(-1, 2)
        kept, kept_of_flat = ids[:, 0].unique(), ids[:, 1].unique()
        assert abs(len(kept) - num_kept) <= 1 and abs(len(kept_of_flat) - num_kept_of_flat) <= 1
        assert ((kept >= 100) & (kept < 200)).sum() >= 84


class PieceTokenizer:
    """Its token i is the i-th of the given pieces of bytes."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces

    def is_special(self, token_id: int) -> bool:
        return False

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.pieces[token_id] for token_id in ids)


def cut_at_stop(text: str, stops: list[str]) -> str:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "ä", "🙂a"]), max_size=12).map("".join),
    st.lists(st.text("abä🙂", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 6), min_size=100, max_size=100),
)
@example("ab🙂a", ["ab🙂", "b"], [100])  # the stop string that starts first is not the one that is complete first
def test_streamed_text_never_has_to_be_taken_back(text, stops, widths):
    ends = [sum(widths[:count]) for count in range(len(widths) + 1)]
    pieces = [text.encode()[start:end] for start, end in itertools.pairwise(ends)]
    stream = TextStream(PieceTokenizer(pieces), stops)  # type: ignore[arg-type]
    expected, shown = cut_at_stop(text, stops), ""
    for token_id in range(len(pieces)):
        if not stream.is_stopped:
            shown += stream.feed(token_id)
            assert expected.startswith(shown)
    assert shown + stream.finish() == expected


def test_half_a_character_at_the_end_becomes_a_replacement_character():
    stream = TextStream(PieceTokenizer([b"a", *[bytes([byte]) for byte in "🙂".encode()]]))  # type: ignore[arg-type]
    assert [stream.feed(token_id) for token_id in range(4)] == ["a", "", "", ""]
    assert stream.finish() == "\ufffd"
