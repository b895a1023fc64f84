"""The scheduler: what it shares, whom it lets in, what it takes back; and that none of it changes a token."""

import random
from dataclasses import replace

import pytest
import torch
from test_engine import tiny_model, tiny_tokenizer

from puna.inference.engine.cache.paged_cache import PAGE_LEN, PagePool
from puna.inference.engine.detokenizer import TextStream
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import Chunk
from puna.inference.engine.runners.native_runner import NativeRunner
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.scheduling import scheduler as scheduler_module
from puna.inference.engine.scheduling.request import Request, State
from puna.inference.engine.scheduling.scheduler import ScheduledRequest, Scheduler
from puna.model.llama import Llama
from puna.model.quantization.quantized import round_linears


def new_request(prompt: list[int], *, tenant: str = "", max_tokens: int = 20, **params) -> Request:
    text = TextStream(tiny_tokenizer())
    return Request(0, prompt, SamplingParams(max_tokens=max_tokens, **params), text, tenant)


def run_step(scheduler: Scheduler) -> list[ScheduledRequest]:
    """Do as the engine would, choosing token 9 every time."""
    batch = scheduler.schedule()
    for scheduled in batch:
        is_last = scheduled.is_sampled
        scheduler.commit(scheduled.request, scheduled.num_tokens)
        if is_last and scheduled.request.extend(9, None).finish_reason:
            scheduler.remove(scheduled.request)
    scheduler.check_all()
    return batch


def new_prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(8, 270), k=length)


def test_a_prompt_is_read_in_pieces_while_others_get_their_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler_module, "BUSY_TOKENS", 50)
    scheduler = Scheduler(PagePool(100), max_batch=4)
    talker, reader = new_request(new_prompt(10, 0)), new_request(new_prompt(200, 1))
    scheduler.add(talker)
    run_step(scheduler)
    scheduler.add(reader)
    sizes = [
        [(scheduled.request is talker, scheduled.num_tokens) for scheduled in run_step(scheduler)] for _ in range(5)
    ]
    assert sizes == [[(True, 1), (False, 50)]] * 4 + [[(True, 1), (False, 1)]]


def test_a_beginning_that_was_computed_is_not_computed_again_within_a_tenant():
    scheduler = Scheduler(PagePool(100), max_batch=4)
    prompt = new_prompt(5 * PAGE_LEN, 0)

    def num_computed(prompt: list[int], tenant: str, **params) -> int:
        scheduler.add(new_request(prompt, tenant=tenant, max_tokens=0, **params))
        return sum(scheduled.num_tokens for scheduled in run_step(scheduler))

    assert num_computed(prompt, "a") == 80
    # The last token is always computed, and with it its page.
    assert num_computed(prompt, "a") == PAGE_LEN
    assert num_computed([*prompt, 5, 6], "a") == 2
    assert num_computed([*prompt[:40], *new_prompt(40, 1)], "a") == 48
    assert num_computed(prompt, "a", echo_logprobs=True) == 80
    assert num_computed(prompt, "b") == 80


def test_equal_prompts_that_come_together_are_computed_once():
    scheduler = Scheduler(PagePool(100), max_batch=8)
    prompt = new_prompt(100, 0)
    for _ in range(4):
        scheduler.add(new_request(prompt))
    assert [scheduled.num_tokens for scheduled in run_step(scheduler)] == [100]
    # 96 tokens are whole pages; each goes on with the last four for itself.
    assert sorted(scheduled.num_tokens for scheduled in run_step(scheduler)) == [1, 4, 4, 4]
    assert scheduler.pool.num_held == 6 + 4


def test_when_pages_run_out_the_youngest_waits_and_everyone_ends():
    scheduler = Scheduler(PagePool(10), max_batch=8)
    requests = [new_request(new_prompt(30, seed), max_tokens=100) for seed in range(4)]
    for request in requests:
        scheduler.add(request)
    was_preempted = set()
    for _ in range(1000):
        run_step(scheduler)
        was_preempted |= {r for r in scheduler.waiting() if r.ids}
        if all(request.state is State.ENDED for request in requests):
            break
    assert all(len(request.ids) == 100 for request in requests)
    assert was_preempted and requests[0] not in was_preempted
    assert scheduler.pool.num_held == 0


def test_a_tenant_with_many_requests_does_not_keep_another_one_waiting():
    scheduler = Scheduler(PagePool(1000), max_batch=2)
    for seed in range(20):
        scheduler.add(new_request(new_prompt(50, seed), tenant="many"))
    for _ in range(5):
        run_step(scheduler)
    late = new_request(new_prompt(50, 100), tenant="one")
    scheduler.add(late)
    ended = 0
    while late.state is not State.ENDED:
        ended += sum(scheduled.request.state is State.ENDED for scheduled in run_step(scheduler))
    assert ended <= 4, "it was served after the two that ran when it came"


def native_model() -> Llama:
    """A model in int8, which the kernels run: their results don't depend on what else is in the batch."""
    config = replace(tiny_model().config, num_kv_heads=4)
    model = Llama(config)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(parameter.shape[0]))
    round_linears(model)
    return model


def greedy_alone(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    """Continue a prompt that shares nothing: each has a tenant of its own."""
    engine.submit(prompt, params, tenant=str(engine._next_id))
    ids: list[int] = []
    while engine.has_work:
        ids += [token for _, chunk in engine.step() for token in chunk.ids]
    return ids


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_greedy_tokens_of_mixed_requests_that_join_abort_and_are_preempted_equal_those_of_each_alone(count: int):
    model, rng = native_model(), random.Random(0)
    shared = new_prompt(60, 7)
    requests = []
    for seed in range(count):
        prompt = new_prompt(rng.randrange(1, 80), seed)
        if rng.random() < 0.4:
            prompt = shared[: rng.randrange(1, 60)] + prompt
        requests.append((prompt, SamplingParams(max_tokens=rng.randrange(1, 60))))
    engine = Engine(model, tiny_tokenizer(), options=EngineOptions(max_batch=12, cache_tokens=40 * PAGE_LEN))
    if not isinstance(engine.runner, NativeRunner):
        pytest.skip("no C++ compiler")
    got: dict[int, list[Chunk]] = {}
    aborted: set[int] = set()
    num_preempted = 0
    while len(got) < count or engine.has_work:
        if len(got) < count and rng.random() < 0.6:
            prompt, params = requests[len(got)]
            got[engine.submit(prompt, params, tenant=rng.choice("ab"))] = []
        if got and rng.random() < 0.03:
            aborted.add(rng.choice(list(got)))
            engine.abort(max(aborted))
        before = {request.id for request in engine._scheduler.running}
        for request_id, chunk in engine.step():
            got[request_id].append(chunk)
        engine._scheduler.check_all()
        num_preempted += sum(request.id in before for request in engine._scheduler.waiting())
    assert num_preempted > count // 20
    lonely = Engine(model, tiny_tokenizer(), options=EngineOptions(max_batch=1))
    for request_id, chunks in got.items():
        ids = [token for chunk in chunks for token in chunk.ids]
        expected = greedy_alone(lonely, *requests[request_id])
        assert chunks[-1].finish_reason == ("abort" if len(ids) < len(expected) else "length")
        assert ids == expected[: len(ids)] and (len(ids) == len(expected) or request_id in aborted)
