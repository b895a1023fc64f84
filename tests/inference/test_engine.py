"""The engine: what it samples, that requests do not touch one another, and that it gives back what it took."""

import random
from functools import cache

import pytest
import torch
import transformers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from puna.formats.tokenizer import Tokenizer, train_tokenizer
from puna.inference.engine import engine as engine_module
from puna.inference.engine.engine import Engine
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import Chunk, Completion, collect
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.pipeline.errors import RequestError

MAX_CONTEXT = 256
PROMPT_LENGTHS = (1, 3, 70, 17, 64, 5, 33, 100)


@cache
def tiny_tokenizer() -> Tokenizer:
    text = "In the beginning the words were few: größer, più, 🙂. Then they were many, and many more. "
    return train_tokenizer([text] * 3, vocab_size=530, split_digits=False)


@cache
def tiny_model(vocab_size: int = 530, num_layers: int = 2) -> Llama:
    """Random weights, large enough that greedy text does not settle on one token."""
    model = Llama(
        LlamaConfig(
            dim=32,
            hidden_dim=64,
            head_dim=8,
            num_layers=num_layers,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=vocab_size,
            max_context=MAX_CONTEXT,
        )
    )
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model


def new_engine(**options) -> Engine:
    return Engine(tiny_model(), tiny_tokenizer(), options=EngineOptions(**options))


def new_prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(8, 270), k=length)


PROMPTS = [new_prompt(length) for length in PROMPT_LENGTHS]


def drain(engine: Engine) -> dict[int, list[Chunk]]:
    chunks: dict[int, list[Chunk]] = {}
    while engine.has_work:
        for request_id, chunk in engine.step():
            chunks.setdefault(request_id, []).append(chunk)
    return chunks


def complete_alone(prompt: list[int], params: SamplingParams, engine: Engine | None = None) -> Completion:
    engine = engine or new_engine(max_batch=1)
    request_id = engine.submit(prompt, params)
    return collect(drain(engine)[request_id], len(prompt))


def complete_together(prompts: list[list[int]], params: SamplingParams, **options) -> list[Completion]:
    return LocalSampler(tiny_model(), tiny_tokenizer(), options=EngineOptions(**options)).complete(prompts, params)


@torch.no_grad()
def reference_logprobs(ids: list[int]) -> torch.Tensor:
    model = tiny_model()
    hidden = model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]))
    return torch.log_softmax(model.logits(hidden), dim=-1)


def transformers_twin(model: Llama) -> transformers.LlamaForCausalLM:
    config = model.config
    twin = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_context,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
        )
    )
    weights = model.state_dict()
    twin.lm_head.weight.data.copy_(weights.pop("lm_head.weight"))
    twin.model.load_state_dict(weights)
    return twin.eval()


def test_greedy_equals_transformers_generate_single_and_batched():
    twin = transformers_twin(tiny_model())
    width = max(PROMPT_LENGTHS)
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    told = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = twin.generate(padded, attention_mask=mask, **told)[:, width:].tolist()

    params = SamplingParams(max_tokens=24)
    assert [done.ids for done in complete_together(PROMPTS, params)] == expected
    assert [complete_alone(prompt, params).ids for prompt in PROMPTS] == expected
    alone = torch.tensor([PROMPTS[2]])
    single = twin.generate(alone, attention_mask=torch.ones_like(alone), **told)
    assert single[0, len(PROMPTS[2]) :].tolist() == expected[2]
    assert len({token for ids in expected for token in ids}) > 40, "the model is too dull to tell right from wrong"


def test_requests_that_join_and_leave_do_not_change_one_anothers_tokens():
    rng = random.Random(3)
    waiting = [(new_prompt(rng.randrange(1, 90), seed), SamplingParams(rng.randrange(1, 40))) for seed in range(30)]
    expected = [complete_alone(*request).ids for request in waiting]
    engine = new_engine(max_batch=5, cache_tokens=512)
    got: dict[int, list[int]] = {}
    aborted = set()
    while len(got) < len(waiting) or engine.has_work:
        if len(got) < len(waiting) and rng.random() < 0.5:
            got[engine.submit(*waiting[len(got)])] = []
        if got and rng.random() < 0.05:
            aborted.add(rng.choice(list(got)))
            engine.abort(max(aborted))
        for request_id, chunk in engine.step():
            got[request_id].extend(chunk.ids)
    for request_id, ids in got.items():
        assert ids == expected[request_id][: len(ids)]
        assert len(ids) == len(expected[request_id]) or request_id in aborted


def test_two_runs_give_identical_completions():
    params = SamplingParams(max_tokens=20, temperature=0.8, top_p=0.9, seed=7, logprobs=3)
    assert complete_together(PROMPTS, params) == complete_together(PROMPTS, params)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_seed_gives_the_same_sample_whatever_else_is_in_the_batch(top_p):
    params = SamplingParams(max_tokens=20, temperature=1.5, top_p=top_p, seed=11)
    alone = complete_alone(PROMPTS[1], params).ids
    others = [SamplingParams(max_tokens=9, temperature=heat, top_p=p) for heat, p in ((0, 1), (2, 0.5), (1, 1))]
    sampler = LocalSampler(tiny_model(), tiny_tokenizer())
    mixed = sampler.complete([PROMPTS[0], PROMPTS[4], PROMPTS[1], PROMPTS[5]], [*others[:2], params, others[2]])
    assert mixed[2].ids == alone
    assert complete_alone(PROMPTS[1], SamplingParams(20, 1.5, top_p, seed=12)).ids != alone


def test_logprobs_are_the_models_before_temperature_and_top_p():
    params = SamplingParams(max_tokens=12, temperature=3.0, top_p=0.9, seed=1, logprobs=4)
    done = complete_alone(PROMPTS[3], params)
    expected = reference_logprobs(PROMPTS[3] + done.ids)[len(PROMPTS[3]) - 1 : -1]
    for token, entry, row in zip(done.ids, done.logprobs, expected, strict=True):
        assert entry.id == token
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        values, indices = row.topk(4)
        assert [top_id for top_id, _ in entry.top] == indices.tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert any(entry.top[0][0] != entry.id for entry in done.logprobs)


def test_echo_scores_the_prompt_without_sampling(monkeypatch):
    monkeypatch.setattr(engine_module, "SCORED_TOKENS", 7)
    params = SamplingParams(max_tokens=0, logprobs=2, echo_logprobs=True)
    for prompt, done in zip(PROMPTS, complete_together(PROMPTS, params, max_batch=3), strict=True):
        assert (done.ids, done.text, done.logprobs, done.finish_reason) == ([], "", [], "length")
        first, *rest = done.prompt_logprobs
        assert first is None
        expected = reference_logprobs(prompt)
        assert [entry.id for entry in rest] == prompt[1:]
        for entry, row in zip(rest, expected, strict=False):
            assert entry.logprob == pytest.approx(row[entry.id].item(), abs=1e-4)
            assert [top_id for top_id, _ in entry.top] == row.topk(2).indices.tolist()


def test_a_stop_id_ends_the_request_and_its_text_is_left_out():
    free = complete_alone(PROMPTS[2], SamplingParams(max_tokens=20))
    stop = free.ids[9]
    cut = free.ids.index(stop) + 1
    done = complete_alone(PROMPTS[2], SamplingParams(max_tokens=20, stop_ids=(3, stop)))
    assert (done.ids, done.finish_reason) == (free.ids[:cut], "stop")
    regular = [token for token in done.ids[:-1] if not tiny_tokenizer().is_special(token)]
    assert done.text == tiny_tokenizer().decode(regular)


def test_a_stop_string_is_found_across_token_borders():
    free = complete_alone(PROMPTS[2], SamplingParams(max_tokens=60, temperature=1.0, seed=5))
    at = len(free.text) // 2
    stop = free.text[at : at + 5]
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=5, stop_strings=("never", stop))
    done = complete_alone(PROMPTS[2], params)
    assert (done.text, done.finish_reason) == (free.text[: free.text.index(stop)], "stop")
    assert done.ids == free.ids[: len(done.ids)] and len(done.ids) < len(free.ids)


def test_logits_that_are_not_numbers_end_one_request_alone():
    sick = Llama(tiny_model().config)
    sick.load_state_dict(tiny_model().state_dict())
    poison = 5
    with torch.no_grad():
        sick.embed_tokens.weight[poison] = float("nan")
    params = SamplingParams(max_tokens=10)
    prompts = [prompt for prompt in PROMPTS if len(prompt) < 90]
    prompts[1:1] = [[*new_prompt(80), poison]]
    sampler = LocalSampler(sick, tiny_tokenizer(), options=EngineOptions(max_batch=4))
    found = sampler.complete(prompts, params)
    assert [done.finish_reason for done in found] == ["length", "error", *["length"] * (len(prompts) - 2)]
    assert "not finite" in str(found[1].error)
    for prompt, done in zip(prompts, found, strict=True):
        if poison not in prompt:
            assert done.ids == complete_alone(prompt, params).ids
    assert sampler.engine.pool.num_held == 0


def test_an_exception_while_a_prompt_is_read_ends_that_request_alone():
    fragile = Llama(tiny_model().config)
    fragile.load_state_dict(tiny_model().state_dict())

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if (inputs[0] == 6).any():
            raise ValueError("the number six")

    fragile.embed_tokens.register_forward_pre_hook(refuse)
    params = SamplingParams(max_tokens=4)
    found = LocalSampler(fragile, tiny_tokenizer()).complete([PROMPTS[0], [9, 6, 9], PROMPTS[4]], params)
    assert [done.finish_reason for done in found] == ["length", "error", "length"]
    assert isinstance(found[1].error, ValueError) and str(found[1].error) == "the number six"
    assert found[2].ids == complete_alone(PROMPTS[4], params).ids


def test_rows_without_a_token_are_never_sampled_and_have_no_probability():
    wide = tiny_model(vocab_size=4000)
    narrow = tiny_model()
    with torch.no_grad():
        for name, tensor in narrow.named_parameters():
            wide.get_parameter(name)[: len(tensor)] = tensor
        wide.lm_head.weight[530:] = 9.0  # type: ignore[union-attr]
    asked = [
        SamplingParams(max_tokens=8, temperature=temperature, top_p=top_p, seed=0, logprobs=5, echo_logprobs=True)
        for temperature, top_p in ((0.0, 1.0), (100.0, 1.0), (1.0, 0.9))
    ]
    found = LocalSampler(wide, tiny_tokenizer()).complete(PROMPTS[:3], asked)
    plain = LocalSampler(narrow, tiny_tokenizer()).complete(PROMPTS[:3], asked)
    assert [done.ids for done in found] == [done.ids for done in plain]
    for ours, theirs in zip(found, plain, strict=True):
        for name in ("logprobs", "prompt_logprobs"):
            pairs = zip(getattr(ours, name), getattr(theirs, name), strict=True)
            assert all(each is other or abs(each.logprob - other.logprob) < 1e-4 for each, other in pairs)


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ([], {}, "prompt"),
        ([530], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1] * 257, {"max_tokens": 0}, "prompt"),
        ([1] * 250, {"max_tokens": 7}, "max_tokens"),
        ([1], {"logprobs": 531}, "logprobs"),
        ([1], {"max_tokens": -1}, "max_tokens"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"temperature": -0.1}, "temperature"),
        ([1], {"top_p": 1.1}, "top_p"),
        ([1], {"stop_strings": ("",)}, "stop_strings"),
        ([1], {"seed": 1 << 70}, "seed"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_at_once(prompt, params, field):
    engine = new_engine()
    with pytest.raises(RequestError) as refused:
        engine.submit(prompt, SamplingParams(**params))
    assert refused.value.param == field
    assert not engine.has_work


def test_a_request_beyond_the_cache_is_refused_and_one_that_just_fits_is_served():
    engine = new_engine(cache_tokens=128)
    with pytest.raises(RequestError):
        engine.submit([1] * 100, SamplingParams(max_tokens=29))
    assert len(complete_alone([1] * 100, SamplingParams(max_tokens=28), engine).ids) == 28


def test_a_cache_that_turns_from_long_to_many_keeps_what_is_written():
    engine = new_engine(max_batch=2, cache_tokens=256)
    complete_alone(new_prompt(200), SamplingParams(max_tokens=2), engine)
    params = SamplingParams(max_tokens=20)
    first = engine.submit(PROMPTS[7], params)
    chunks = [chunk for _ in range(3) for _, chunk in engine.step()]
    engine.submit(PROMPTS[5], params)
    chunks += dict(engine.step())[first], *drain(engine)[first]
    assert collect(chunks, 100).ids == complete_alone(PROMPTS[7], params).ids


def test_a_request_may_fill_the_whole_context():
    done = complete_alone(new_prompt(MAX_CONTEXT - 3), SamplingParams(max_tokens=3))
    expected = reference_logprobs(new_prompt(MAX_CONTEXT - 3) + done.ids[:-1])[-3:].argmax(-1)
    assert done.ids == expected.tolist()


def test_bfloat16_stays_near_float32():
    params = SamplingParams(max_tokens=0, echo_logprobs=True)
    prompt = new_prompt(100)
    exact, rough = (complete_together([prompt], params, dtype=dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    errors = [abs(a.logprob - b.logprob) for a, b in zip(exact.prompt_logprobs[1:], rough.prompt_logprobs[1:])]  # type: ignore  # noqa: B905
    assert 0 < sum(errors) / len(errors) < 0.3
    tokens = complete_together(PROMPTS, SamplingParams(max_tokens=5), dtype=torch.bfloat16)
    assert all(len(done.ids) == 5 for done in tokens)


def test_an_int8_cache_stays_near_the_usual_one_and_has_room_for_more(monkeypatch: pytest.MonkeyPatch):
    score = SamplingParams(max_tokens=0, echo_logprobs=True)
    usual, rounded = (
        [entry.logprob for entry in done.prompt_logprobs if entry]
        for is_int8 in (False, True)
        for done in complete_together([new_prompt(100)], score, is_int8_cache=is_int8)
    )
    errors = [abs(a - b) for a, b in zip(usual, rounded, strict=True)]
    assert 0 < sum(errors) / len(errors) < 0.3
    together = complete_together(PROMPTS, SamplingParams(max_tokens=12), is_int8_cache=True)
    for prompt, done in zip(PROMPTS, together, strict=True):
        assert complete_alone(prompt, SamplingParams(max_tokens=12), new_engine(is_int8_cache=True)).ids == done.ids
    monkeypatch.setattr("puna.inference.engine.engine.DEFAULT_CACHE_BYTES", 500_000)
    pages, more_pages = (new_engine(is_int8_cache=is_int8).pool.num_pages for is_int8 in (False, True))
    head_dim = tiny_model().config.head_dim
    assert more_pages * (head_dim + 4) <= pages * 4 * head_dim < (more_pages + 10) * (head_dim + 4)


def test_the_sampler_keeps_the_order_and_reports_progress():
    told: list[int] = []
    sampler = LocalSampler(tiny_model(), tiny_tokenizer(), options=EngineOptions(max_batch=3))
    params = [SamplingParams(max_tokens=length) for length in range(1, 9)]
    found = sampler.complete(PROMPTS, params, progress=told.append)
    assert [len(done.ids) for done in found] == list(range(1, 9))
    assert [done.num_prompt_tokens for done in found] == list(PROMPT_LENGTHS)
    assert told == sorted(set(told)) and told[-1] == 8 and len(told) > 1


def test_a_stream_gives_the_same_as_complete_even_around_another_call():
    sampler = LocalSampler(tiny_model(), tiny_tokenizer())
    params = SamplingParams(max_tokens=15, logprobs=1)
    chunks: list[Chunk] = []
    for chunk in sampler.stream(PROMPTS[3], params):
        chunks.append(chunk)
        if len(chunks) == 4:
            inner = sampler.complete(PROMPTS[:2], params)
    assert collect(chunks, len(PROMPTS[3])).ids == complete_alone(PROMPTS[3], params).ids
    assert [done.ids for done in inner] == [complete_alone(prompt, params).ids for prompt in PROMPTS[:2]]
    assert len(chunks) == 15


def test_closing_a_stream_early_frees_its_row():
    sampler = LocalSampler(tiny_model(), tiny_tokenizer())
    stream = sampler.stream(PROMPTS[3], SamplingParams(max_tokens=100))
    next(stream)
    assert sampler.engine.num_running == 1
    stream.close()  # type: ignore[attr-defined]
    assert (sampler.engine.num_running, sampler.engine.pool.num_held) == (0, 0)


class EngineMachine(RuleBasedStateMachine):
    """Any order of submit, step and abort: what is taken is given back, every request ends exactly once."""

    def __init__(self):
        super().__init__()
        self.engine = Engine(
            tiny_model(num_layers=1), tiny_tokenizer(), options=EngineOptions(max_batch=3, cache_tokens=320)
        )
        self.ends: dict[int, list[str]] = {}

    @rule(length=st.integers(1, 100), max_tokens=st.integers(0, 90), seed=st.integers(0, 9))
    def submit(self, length, max_tokens, seed):
        params = SamplingParams(max_tokens, temperature=1.0, seed=seed)
        self.ends[self.engine.submit(new_prompt(length, seed), params)] = []

    @rule(which=st.integers(-1, 12), times=st.integers(1, 2))
    def abort(self, which, times):
        for _ in range(times):
            self.engine.abort(which)

    @rule(times=st.integers(1, 20))
    def step(self, times):
        for _ in range(times):
            chunks = self.engine.step()
            self.engine._scheduler.check_all()
            for request_id, chunk in chunks:
                assert not self.ends[request_id], "a chunk after the last one"
                if chunk.finish_reason:
                    self.ends[request_id].append(chunk.finish_reason)

    @invariant()
    def memory_stays_within_bounds(self):
        self.engine._scheduler.check_all()
        assert self.engine.num_running <= 3
        assert self.engine.pool.num_pages == 20

    def teardown(self):
        while self.engine.has_work:
            self.step(1)
        assert all(len(reasons) == 1 and reasons[0] != "error" for reasons in self.ends.values())
        assert self.engine.pool.num_held == 0
        params = SamplingParams(max_tokens=5)
        fresh = Engine(tiny_model(num_layers=1), tiny_tokenizer())
        assert complete_alone(PROMPTS[1], params, self.engine).ids == complete_alone(PROMPTS[1], params, fresh).ids


EngineMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
test_any_order_of_submit_step_and_abort_keeps_the_invariants = EngineMachine.TestCase
