"""What the engine samples with: the choice among logits, and text that is never taken back."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.sampling.sampler import SamplingState, sample
from puna.pipeline.errors import RequestError

NUM_DRAWS = 1000


def new_row(draw: float = 0.5, *, prompt: Sequence[int] = (), answer: Sequence[int] = (), **settings) -> SamplingState:
    row = SamplingState(prompt, SamplingParams(**settings))
    for token in answer:
        row.accept(token)
    row.uniform = draw
    return row


def shares(probs: torch.Tensor, **settings) -> torch.Tensor:
    """Return how often each id is chosen when the draws cover 0..1 evenly."""
    rows = [new_row((index + 0.5) / NUM_DRAWS, **settings) for index in range(NUM_DRAWS)]
    ids = sample(probs.log().expand(NUM_DRAWS, -1), rows)
    return torch.bincount(torch.tensor(ids), minlength=len(probs)) / NUM_DRAWS


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 2 / NUM_DRAWS)


def test_choices_follow_the_tempered_distribution_and_the_nucleus():
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    assert close(shares(probs, temperature=1.0), probs)
    assert close(shares(probs, temperature=2.0), probs.sqrt() / probs.sqrt().sum())
    # 0.5 + 0.25 stays below 0.8, so the token that crosses it (0.15) is kept and the last is not.
    assert close(shares(probs, temperature=1.0, top_p=0.8), torch.tensor([0, 0.5, 0.15, 0.25]) / 0.9)
    assert close(shares(probs, temperature=1.0, top_p=0.4), torch.tensor([0, 1.0, 0, 0]))
    assert close(shares(probs, temperature=0.0), torch.tensor([0, 1.0, 0, 0]))


def test_top_k_comes_before_top_p_and_min_p_looks_at_the_largest():
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    assert close(shares(probs, temperature=1.0, top_k=2), torch.tensor([0, 0.5, 0, 0.25]) / 0.75)
    # Of the two that top_k left the first has two thirds of the mass, so that it alone crosses 0.6.
    assert close(shares(probs, temperature=1.0, top_k=2, top_p=0.6), torch.tensor([0, 1.0, 0, 0]))
    assert close(shares(probs, temperature=1.0, min_p=0.29), torch.tensor([0, 0.5, 0.15, 0.25]) / 0.9)
    assert close(shares(probs, temperature=1.0, min_p=0.31), torch.tensor([0, 0.5, 0, 0.25]) / 0.75)


def test_a_nucleus_may_be_wider_than_the_usual_candidates():
    probs = torch.full((1000,), 0.4 / 900)
    probs[100:200] = 0.6 / 100
    logits = torch.stack([probs, torch.ones(1000)]).log().repeat(2000, 1)
    draws = [(index // 2 + 0.5) / 2000 for index in range(4000)]
    for top_p, num_kept, num_kept_of_flat in ((0.5, 84, 500), (0.8, 550, 800)):
        rows = [new_row(draw, temperature=1.0, top_p=top_p) for draw in draws]
        ids = torch.tensor(sample(logits, rows)).view(-1, 2)
        kept, kept_of_flat = ids[:, 0].unique(), ids[:, 1].unique()
        assert abs(len(kept) - num_kept) <= 1 and abs(len(kept_of_flat) - num_kept_of_flat) <= 1
        assert ((kept >= 100) & (kept < 200)).sum() >= 84


def twin_masses(logits: torch.Tensor, params: SamplingParams, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Say plainly what each id's chance is, in float64."""
    values = logits.double().tolist()
    for token in {*prompt, *answer}:
        values[token] *= 1 / params.repetition_penalty if values[token] > 0 else params.repetition_penalty
    for token in set(answer):
        values[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    for token, bias in params.logit_bias:
        values[token] += bias
    for token in params.banned_ids:
        values[token] = float("-inf")
    probs = torch.softmax(torch.tensor(values, dtype=torch.float64) / (params.temperature or 1e-9), dim=-1).tolist()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])[: params.top_k or None]
    whole, before, kept = sum(probs[token] for token in order), 0.0, dict[int, float]()
    for token in order:
        if before <= params.top_p * whole and probs[token] >= params.min_p * probs[order[0]]:
            kept[token] = probs[token]
        before += probs[token]
    total = sum(kept.values())
    return torch.tensor([kept.get(token, 0.0) / total for token in range(len(probs))])


IDS = st.integers(0, 1199)
SETTINGS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.3, 1.0, 4.0])},
    optional={
        "top_k": st.sampled_from([1, 3, 300, 1100, 5000]),
        "top_p": st.sampled_from([0.0, 0.3, 0.9, 0.999]),
        "min_p": st.sampled_from([0.01, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "presence_penalty": st.sampled_from([-1.5, 0.7]),
        "frequency_penalty": st.sampled_from([-0.4, 2.0]),
        "logit_bias": st.dictionaries(IDS, st.floats(-100, 100), max_size=5).map(lambda found: tuple(found.items())),
        "banned_ids": st.lists(IDS, max_size=5).map(tuple),
    },
)


@given(
    SETTINGS,
    st.lists(IDS, max_size=40),
    st.lists(st.integers(0, 30), max_size=40),
    st.integers(0, 9),
    st.floats(0, 0.999),
)
def test_a_choice_is_likely_enough_by_a_plain_twin_and_the_same_in_any_batch(settings, prompt, answer, seed, draw):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 1200, generator=generator) * 4
    row = new_row(draw, prompt=prompt, answer=answer, **settings)
    others = [
        new_row(0.3, temperature=1.0, top_p=0.9),
        new_row(),
        new_row(0.9, temperature=2.0),
        new_row(0.1, temperature=1.0, min_p=0.2, prompt=[1], repetition_penalty=2.0),
    ]
    (chosen,) = sample(logits[:1], [row])
    mass = twin_masses(logits[0], row.params, prompt, answer)
    assert mass[chosen] > 0
    assert sample(logits[:2], [row, others[0]])[0] == chosen
    assert sample(logits.roll(3, 0), [*others[:3], row, others[3]])[3] == chosen


def test_the_same_row_gives_the_same_id_in_a_vocabulary_of_llamas_size():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 128_256, generator=generator) * 3
    settings = [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 3.0, "top_p": 0.9}, {}]
    rows = [new_row(0.7, **each) for each in settings]
    together = sample(logits, rows)
    assert together == [sample(logits[at : at + 1], [row])[0] for at, row in enumerate(rows)]
    assert together[3] == logits[3].argmax()
    for at in range(3):
        mass = twin_masses(logits[at], rows[at].params, [], [])
        order = mass.argsort(descending=True) if rows[at].params.is_truncated else torch.arange(len(mass))
        place = (order == together[at]).nonzero().item()
        assert mass[order][:place].sum() - 1e-5 <= 0.7 <= mass[order][: place + 1].sum() + 1e-5


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.4}, {"temperature": 0.7}, {"top_k": 7}, {"min_p": 0.1}])
def test_penalties_and_cuts_equal_those_of_transformers(settings):
    processors = LogitsProcessorList()
    if "repetition_penalty" in settings:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "temperature" in settings:
        processors.append(transformers.TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        processors.append(transformers.TopKLogitsWarper(settings["top_k"]))
    if "min_p" in settings:
        processors.append(transformers.MinPLogitsWarper(settings["min_p"]))
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(2)) * 2
    prompt, answer = [3, 4, 4, 9], [int(logits.argmax()), 4]
    expected = torch.softmax(processors(torch.tensor([[*prompt, *answer]]), logits.clone())[0], dim=-1)
    params = {"temperature": 1.0, **settings}
    rows = [new_row((index + 0.5) / NUM_DRAWS, prompt=prompt, answer=answer, **params) for index in range(NUM_DRAWS)]
    found = torch.bincount(torch.tensor(sample(logits.expand(NUM_DRAWS, -1), rows)), minlength=50) / NUM_DRAWS
    assert close(found, expected)
    assert set(found.nonzero()[:, 0].tolist()) <= set(expected.nonzero()[:, 0].tolist())


def test_penalties_count_what_was_generated_and_not_the_prompt():
    logits = torch.tensor([[2.0, 1.5, 0.0, -1.0]])
    assert sample(logits, [new_row(prompt=[0, 0], presence_penalty=2.0)]) == [0]
    assert sample(logits, [new_row(answer=[0], presence_penalty=0.6)]) == [1]
    assert sample(logits, [new_row(answer=[0], frequency_penalty=0.3)]) == [0]
    assert sample(logits, [new_row(answer=[0, 0], frequency_penalty=0.3)]) == [1]
    assert sample(logits, [new_row(prompt=[0], repetition_penalty=1.5)]) == [1]
    # A negative logit is multiplied: what has been said never gains by it.
    assert sample(torch.tensor([[-1.0, -1.2]]), [new_row(answer=[0], repetition_penalty=1.5)]) == [1]
    assert sample(logits, [new_row(logit_bias=((3, 100.0),))]) == [3]
    assert sample(logits, [new_row(logit_bias=((3, 100.0),), banned_ids=(3, 0))]) == [1]
    assert logits.tolist() == [[2.0, 1.5, 0.0, -1.0]], "the model's own logits are what log-probabilities are told from"


def test_a_row_without_any_admitted_token_is_refused():
    with pytest.raises(RequestError, match="no token"):
        sample(torch.zeros(1, 2), [new_row(banned_ids=(0, 1))])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", float("nan")),
        ("logit_bias", ((3, 101.0),)),
        ("logit_bias", tuple((token, 1.0) for token in range(2000))),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(setting, value):
    with pytest.raises(RequestError) as caught:
        replace(SamplingParams(), **{setting: value})
    assert caught.value.param == setting


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
