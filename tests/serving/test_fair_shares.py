"""Tenants share one engine: equal tokens under overload, room for newcomers, and an honest time to come back."""

import asyncio
import random
import threading
from collections import Counter
from typing import Any

import pytest
from test_scheduler import new_prompt, new_request, run_step

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.engine.cache.paged_cache import PagePool
from puna.inference.engine.grammar.grammar import json_grammar
from puna.inference.engine.scheduling.request import Request, State
from puna.inference.engine.scheduling.scheduler import IDLE_TOKENS, Scheduler
from puna.pipeline.errors import RequestError
from puna.serving.admission.admission import (
    BURST,
    MOST_DELAY,
    MOST_SECONDS,
    REFUSALS_PER_SECOND,
    Admission,
    RefusalPace,
)
from puna.serving.admission.workers import LARGE_BYTES, Workers
from puna.serving.admission.workers import MAX_WAITING as MOST_LARGE
from puna.serving.errors import HttpError
from puna.serving.generation.grammar_pool import MAX_WAITING, GrammarPool
from puna.serving.middleware.concurrency import ConcurrencyMiddleware
from puna.serving.middleware.keys import Tenant


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal_of(admission: Admission, tenant: str, size: int = 1) -> HttpError:
    with pytest.raises(HttpError) as caught:
        admission.take(tenant, size)
    assert caught.value.status == 503
    return caught.value


def test_two_large_requests_leave_another_tenant_its_share():
    admission = Admission(256)
    admission.take("a", 128)
    admission.take("a", 128)
    assert "256 of 256" in refusal_of(admission, "a").message
    for _ in range(128):
        admission.take("b", 1)
    refusal_of(admission, "b")
    admission.take("c", 85)
    assert admission.held == {"a": 256, "b": 128, "c": 85}
    admission.release("a", 200)
    assert "56 of your share of 85" in refusal_of(admission, "a", 30).message
    admission.take("a", 29)


def test_every_newcomer_gets_in_however_many_there_are():
    admission = Admission(16)
    for place in range(40):
        for _ in range(max(1, 16 // (place + 1))):
            admission.take(str(place), 1)
        refusal_of(admission, str(place))


def test_a_request_beyond_the_share_says_how_large_the_share_is():
    admission = Admission(100)
    admission.take("a", 1)
    assert "at most 50 at once" in refusal_of(admission, "b", 60).message
    with pytest.raises(RequestError, match="at most 100") as caught:
        admission.take("b", 101)
    assert caught.value.param == "n"
    admission.release("a")
    admission.take("b", 60)


def test_retry_after_follows_the_rate_at_which_the_tenants_own_requests_finish():
    clock = Clock()
    admission = Admission(20, clock=clock)
    admission.take("slow", 10)
    admission.take("quick", 10)
    for _ in range(6):
        clock.now += 2.0
        admission.release("slow")
        admission.take("slow", 1)
        for _ in range(10):
            admission.release("quick")
            admission.take("quick", 1)
    seconds = {
        tenant: int((refusal_of(admission, tenant, 4).headers or {})["retry-after"]) for tenant in admission.held
    }
    assert seconds["quick"] == 1 and 5 <= seconds["slow"] <= 8
    clock.now += 1000
    assert refusal_of(admission, "slow").headers == {"retry-after": str(MOST_SECONDS)}


def overload(num_tenants: int, *, max_batch: int, seconds: int, seed: int) -> Counter[str]:
    """Let tenants keep four times the batch in the queue, the first one most of it; return the tokens of each."""
    rng, tokens = random.Random(seed), Counter[str]()
    scheduler = Scheduler(PagePool(4000), max_batch=max_batch)
    num_wanted = {str(place): max_batch * 4 // num_tenants * (8 if place == 0 else 1) for place in range(num_tenants)}
    for _ in range(seconds * 50):
        present = Counter(request.tenant for request in [*scheduler.running, *scheduler.waiting()])
        for tenant, wanted in num_wanted.items():
            for _ in range(wanted - present[tenant]):
                prompt = new_prompt(rng.randrange(5, 60), rng.randrange(10**9))
                scheduler.add(new_request(prompt, tenant=tenant, max_tokens=rng.randrange(5, 40)))
        for scheduled in run_step(scheduler):
            tokens[scheduled.request.tenant] += scheduled.num_tokens
    return tokens


def test_tenants_get_equal_tokens_under_overload_whoever_sends_more():
    tokens = overload(5, max_batch=8, seconds=30, seed=0)
    assert max(tokens.values()) < 1.1 * min(tokens.values()), tokens


@pytest.mark.slow
@pytest.mark.parametrize("num_tenants", [2, 10])
def test_tenants_get_equal_tokens_for_two_minutes(num_tenants):
    tokens = overload(num_tenants, max_batch=32, seconds=120, seed=1)
    assert max(tokens.values()) < 1.1 * min(tokens.values()), tokens


def test_a_newcomer_runs_at_once_though_another_tenant_fills_the_batch():
    scheduler = Scheduler(PagePool(1000), max_batch=8)
    for seed in range(30):
        scheduler.add(new_request(new_prompt(40, seed), tenant="many", max_tokens=500))
    for _ in range(20):
        run_step(scheduler)
    late = [new_request(new_prompt(40, 100 + seed), tenant="one", max_tokens=500) for seed in range(6)]
    for request in late:
        scheduler.add(request)
    run_step(scheduler)
    assert Counter(request.tenant for request in scheduler.running) == {"many": 4, "one": 4}
    oldest = scheduler.running[0]
    while oldest.state is not State.ENDED:
        run_step(scheduler)
    assert sum(len(request.ids) for request in late) > 0.9 * 4 * 480


def test_a_newcomer_gets_pages_though_another_tenant_holds_all_of_them():
    scheduler = Scheduler(PagePool(80), max_batch=8)
    for seed in range(8):
        scheduler.add(new_request(new_prompt(150, seed), tenant="many", max_tokens=100))
    for _ in range(5):
        run_step(scheduler)
    late = new_request(new_prompt(200, 100), tenant="one", max_tokens=5)
    scheduler.add(late)
    for _ in range(6):
        run_step(scheduler)
    assert late.state is State.ENDED


def test_a_huge_prompt_does_not_hold_up_the_prompt_of_another_tenant():
    scheduler = Scheduler(PagePool(4000), max_batch=8)
    huge = [new_request(new_prompt(10 * IDLE_TOKENS, seed), tenant="huge") for seed in range(2)]
    for request in huge:
        scheduler.add(request)
    run_step(scheduler)
    small = new_request(new_prompt(30, 9), tenant="small", max_tokens=1)
    scheduler.add(small)
    run_step(scheduler)
    assert small.state is State.ENDED


def test_one_that_leaves_and_comes_back_has_not_been_forgotten():
    scheduler = Scheduler(PagePool(1000), max_batch=1)
    tokens: Counter[str] = Counter()
    steady: list[Request] = []
    for seed in range(3000):
        if not any(request.state is not State.ENDED for request in steady[-3:]):
            steady += [new_request(new_prompt(8, seed), tenant="steady", max_tokens=8) for _ in range(3)]
            for request in steady[-3:]:
                scheduler.add(request)
        if all(request.tenant != "brief" for request in [*scheduler.running, *scheduler.waiting()]):
            scheduler.add(new_request(new_prompt(100, seed), tenant="brief", max_tokens=10))
        for scheduled in run_step(scheduler):
            tokens[scheduled.request.tenant] += scheduled.num_tokens
    assert tokens["brief"] < 1.1 * tokens["steady"], tokens


def test_requests_of_many_tenants_that_join_leave_and_are_preempted_keep_the_invariants():
    rng = random.Random(3)
    scheduler = Scheduler(PagePool(30), max_batch=6)
    alive: list[Request] = []
    for seed in range(1500):
        if rng.random() < 0.4 and len(alive) < 40:
            shared = new_prompt(40, rng.randrange(3)) if rng.random() < 0.5 else []
            prompt = shared + new_prompt(rng.randrange(1, 60), seed)
            alive.append(new_request(prompt, tenant=rng.choice("abcde"), max_tokens=rng.randrange(1, 40)))
            scheduler.add(alive[-1])
        if alive and rng.random() < 0.05:
            scheduler.remove(alive.pop(rng.randrange(len(alive))))
        batch = run_step(scheduler)
        assert len({id(scheduled.request) for scheduled in batch}) == len(batch)
        assert batch or not alive
        alive = [request for request in alive if request.state is not State.ENDED]
    while alive:
        assert run_step(scheduler)
        alive = [request for request in alive if request.state is not State.ENDED]
    assert scheduler.pool.num_held == 0 and not scheduler._served_tokens and not scheduler._waiting


def test_a_tenant_that_is_refused_again_and_again_waits_for_its_refusals():
    clock = Clock()
    pace = RefusalPace(clock=clock)
    delays = [pace.delay("storm") for _ in range(BURST + 41)]
    assert not any(delays[: BURST + 1])
    assert delays[-1] == pytest.approx(40 / REFUSALS_PER_SECOND)
    assert pace.delay("another") == 0
    assert max(pace.delay("storm") for _ in range(1000)) == MOST_DELAY
    clock.now += 10 * MOST_DELAY
    assert pace.delay("storm") == 0


def test_requests_beyond_a_tenants_share_of_the_connections_wait_for_their_refusals():
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await ended.wait()

    async def run() -> None:
        limited = ConcurrencyMiddleware(app, max_requests=1)
        scope = {"path": "/v1/models", "state": {"tenant": Tenant("storm")}}
        asked: list[asyncio.Task[None]] = []
        for _ in range(BURST + 3):
            asked.append(asyncio.create_task(limited(dict(scope), None, None)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        refused = [task for task in asked if task.done()]
        assert len(refused) == BURST + 1 and all(isinstance(task.exception(), HttpError) for task in refused)
        ended.set()
        await asyncio.gather(*asked[BURST + 2 :])  # By then there is room.

    asyncio.run(run())


def test_slow_grammars_of_one_tenant_leave_another_its_turn(tokenizer_path):
    release = threading.Event()

    def slow(_: object) -> str:
        release.wait(20)
        return json_grammar({"type": "null"})

    async def run() -> None:
        grammars = GrammarPool(Tokenizer.load(tokenizer_path), [1])
        waiting = [asyncio.create_task(grammars.compile(slow, param="tools", tenant="a")) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0.1)
        with pytest.raises(HttpError) as caught:
            await grammars.compile(slow, param="tools", tenant="a")
        assert caught.value.status == 503
        for _ in range(3):
            assert await grammars.compile(lambda _: json_grammar({"type": "null"}), param="tools", tenant="b")
        assert not any(task.done() for task in waiting)
        release.set()
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_large_requests_of_one_tenant_leave_another_its_turn():
    began, release = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        release.wait(20)

    async def run() -> None:
        workers, large = Workers(), LARGE_BYTES + 1
        many = [asyncio.create_task(workers.run(slow, num_bytes=large, tenant="a")) for _ in range(MOST_LARGE)]
        await asyncio.to_thread(began.wait, 20)
        with pytest.raises(HttpError) as caught:
            await workers.run(len, "text", num_bytes=large, tenant="a")
        assert caught.value.status == 503
        other = asyncio.create_task(workers.run(len, "text", num_bytes=large, tenant="b"))
        await asyncio.sleep(0.1)
        release.set()
        assert await other == 4 and sum(task.done() for task in many) <= 2
        await asyncio.gather(*many)

    asyncio.run(run())
