"""Speculative decoding: no token changes, whatever guesses; right guesses save steps, and nothing is left behind."""

import random
from collections.abc import Sequence

import pytest
import torch
from test_engine import PROMPTS, new_prompt, tiny_model, tiny_tokenizer

from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.scheduling.request import Request
from puna.inference.engine.speculative.prompt_lookup import PromptLookup
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError


def other_model() -> Llama:
    """A network that has nothing to do with the one it guesses for."""
    model = Llama(tiny_model().config)
    model.initialize(5)
    return model


class Guesser:
    """Guess right, wrong or nothing, at random."""

    def __init__(self, right: dict[int, list[int]]):
        self.right, self.random = right, random.Random(0)

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        drafts = []
        for request, limit in zip(requests, limits, strict=True):
            draft = self.right[request.id][len(request.ids) :][:limit]
            if draft and self.random.random() < 0.7:
                draft[self.random.randrange(len(draft))] = 7
            drafts.append(draft)
        return drafts

    def release(self, request: Request) -> None:
        self.right.pop(request.id, None)


def run(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> tuple[dict[int, list[int]], int]:
    """Return every request's tokens, and how many steps they took."""
    ids = {engine.submit(*pair): [] for pair in zip(prompts, params, strict=True)}
    num_steps = 0
    while engine.has_work:
        num_steps += 1
        for request, chunk in engine.step():
            assert chunk.finish_reason != "error", chunk.error
            ids[request] += chunk.ids
    assert engine.pool.num_held == 0
    return ids, num_steps


def mixed_params(count: int) -> list[SamplingParams]:
    every = (
        SamplingParams(max_tokens=30),
        SamplingParams(max_tokens=25, temperature=1.2, seed=3, top_p=0.9),
        SamplingParams(max_tokens=17, temperature=0.8, seed=4, repetition_penalty=1.3, frequency_penalty=0.5),
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=20, logprobs=2, echo_logprobs=True),
    )
    return [every[index % len(every)] for index in range(count)]


@pytest.mark.parametrize("draft", ["same", "other", "lookup"])
def test_drafts_change_no_token(draft: str):
    drafts = {"same": tiny_model(), "other": other_model(), "lookup": PromptLookup()}
    params = mixed_params(len(PROMPTS))
    plain, plain_steps = run(Engine(tiny_model(), tiny_tokenizer()), PROMPTS, params)
    drafted, steps = run(Engine(tiny_model(), tiny_tokenizer(), draft=drafts[draft]), PROMPTS, params)
    assert drafted == plain
    assert steps < 0.6 * plain_steps if draft == "same" else steps <= plain_steps


def test_guesses_that_are_sometimes_wrong_change_no_token_when_pages_run_out():
    prompts, params = [new_prompt(40, seed) for seed in range(6)], mixed_params(6)
    plain, _ = run(Engine(tiny_model(), tiny_tokenizer()), prompts, params)
    engine = Engine(tiny_model(), tiny_tokenizer(), options=EngineOptions(cache_tokens=192))
    engine._drafter = Guesser({key: list(ids) for key, ids in plain.items()})
    assert run(engine, prompts, params)[0] == plain
    assert not engine._drafter.right, "every request was forgotten"


class CountedGuesser(Guesser):
    """Guess always wrong, and count how often one is asked."""

    num_asked = 0

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[list[int]]:
        self.num_asked += sum(limit > 0 for limit in limits)
        return [[7] * limit for limit in limits]


def test_who_is_always_wrong_is_seldom_asked():
    params = [SamplingParams(max_tokens=100)]
    plain, _ = run(Engine(tiny_model(), tiny_tokenizer()), PROMPTS[:1], params)
    assert 7 not in plain[0]
    engine = Engine(tiny_model(), tiny_tokenizer())
    engine._drafter = guesser = CountedGuesser(dict(plain))
    assert run(engine, PROMPTS[:1], params)[0] == plain
    assert 5 < guesser.num_asked < 20, "of 99 steps"


def test_who_is_sure_guesses_further():
    def sure_model(scale: float) -> Llama:
        model = tiny_model.__wrapped__()  # A model of its own: the other tests have one in common.
        with torch.no_grad():
            model.norm.weight.mul_(scale)
        return model

    steps = {}
    for scale in (1.0, 1000.0):
        engine = Engine(sure_model(scale), tiny_tokenizer(), draft=sure_model(scale))
        _, steps[scale] = run(engine, PROMPTS[:1], [SamplingParams(max_tokens=60)])
    # One guess a step and twelve, all of them right.
    assert 28 <= steps[1.0] <= 32 and steps[1000.0] < 10


def test_what_was_said_before_is_guessed_again():
    request = Request(0, [1, 2, 3, 4, 5, 6, 7, 1, 2, 3], SamplingParams(), None)  # type: ignore[arg-type]
    lookup = PromptLookup()
    assert lookup.propose([request], [4]) == [[4, 5, 6, 7]]
    request.tokens += [9, 5, 6]
    assert lookup.propose([request], [2]) == [[7, 1]], "two tokens are enough"
    request.tokens += [200]
    assert lookup.propose([request], [4]) == [[]]


def test_a_draft_gives_its_pages_back():
    engine = Engine(tiny_model(), tiny_tokenizer(), draft=other_model())
    run(engine, PROMPTS, mixed_params(len(PROMPTS)))
    assert engine._drafter._pool.num_held == 0  # type: ignore[union-attr]
    aborted = engine.submit(PROMPTS[2], SamplingParams(max_tokens=50))
    for _ in range(4):
        engine.step()
    engine.abort(aborted)
    engine.step()
    assert engine._drafter._pool.num_held == 0 and not engine._drafter._states  # type: ignore[union-attr]


def test_a_draft_with_more_rows_guesses_tokens_only_and_one_with_fewer_is_refused():
    padded = tiny_model(vocab_size=536)
    with torch.no_grad():
        padded.lm_head.weight[530:] = 9.0  # type: ignore[union-attr]
    params = [SamplingParams(max_tokens=20)] * 3
    plain, _ = run(Engine(tiny_model(), tiny_tokenizer()), PROMPTS[:3], params)
    assert run(Engine(tiny_model(), tiny_tokenizer(), draft=padded), PROMPTS[:3], params)[0] == plain
    assert run(Engine(padded, tiny_tokenizer(), draft=tiny_model()), PROMPTS[:3], params)[0]
    with pytest.raises(ConfigError, match="a draft with 500 embeddings; expected at least the model's 530"):
        Engine(tiny_model(), tiny_tokenizer(), draft=tiny_model(vocab_size=500))


def test_a_draft_that_is_no_network_fails_alone():
    broken = other_model()
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    params = mixed_params(3)
    plain, _ = run(Engine(tiny_model(), tiny_tokenizer()), PROMPTS[:3], params)
    assert run(Engine(tiny_model(), tiny_tokenizer(), draft=broken), PROMPTS[:3], params)[0] == plain
