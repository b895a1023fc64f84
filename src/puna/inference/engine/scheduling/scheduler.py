"""Waiting and running requests -> what the next step computes. Knows no tensors.

Every running request that generates gets its next token in every step. The rest of the step's budget goes to prompts,
in pieces: of the tenant with the fewest served tokens, running requests before waiting ones, first come first served.
A request is admitted when there is room for its tokens so far, and for its adapter. If pages run out, the youngest
request gives its own back and waits. Likewise when one tenant holds more than an equal share of the batch and another
tenant, with a smaller share, waits. A prompt whose beginning another one is just computing waits until it can share it.
"""

import hashlib
import secrets
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from puna.inference.engine.adapters import Adapters
from puna.inference.engine.cache.paged_cache import PAGE_LEN, PagePool, extend_keys, num_pages_for
from puna.inference.engine.scheduling.request import Request, State

# Prompt tokens in one step: few while others wait for their next token, many when nobody does.
BUSY_TOKENS = 256
IDLE_TOKENS = 2048
MAX_STARTED = 1024


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """`num_tokens` tokens of a request, from its first uncomputed one on, and guesses at what follows the last one."""

    request: Request
    num_tokens: int
    draft_tokens: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        return self.request.num_computed

    @property
    def is_sampled(self) -> bool:
        """Whether a token can be chosen after it."""
        return self.num_tokens == self.request.num_uncomputed


class Scheduler:
    """Invariant: a request waits in its tenant's queue, or runs with the pages of its table, or has ended with none."""

    def __init__(self, pool: PagePool, *, max_batch: int, adapters: Adapters | None = None):
        self.pool, self.max_batch, self.adapters = pool, max_batch, adapters
        self.running: list[Request] = []
        self._waiting: dict[str, deque[Request]] = {}
        # Tokens computed for each tenant with requests, and for absent tenants that are ahead of the virtual time.
        self._served_tokens: dict[str, int] = {}
        self._virtual_time = 0
        # Of requests that have started; bounded, for only a server asks.
        self._num_cached_tokens, self._queue_seconds = 0, deque[float](maxlen=MAX_STARTED)
        self._secret = secrets.token_bytes(32)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def num_waiting_by_tenant(self) -> dict[str, int]:
        return {tenant: len(queue) for tenant, queue in self._waiting.items() if queue}

    def take_started(self) -> tuple[int, list[float]]:
        """Return the cached prompt tokens and the waiting times of requests that started since the last call."""
        taken = self._num_cached_tokens, list(self._queue_seconds)
        self._num_cached_tokens = 0
        self._queue_seconds.clear()
        return taken

    def waiting(self) -> Iterable[Request]:
        return (request for queue in self._waiting.values() for request in queue)

    def add(self, request: Request) -> None:
        """Queue a new request. A tenant without requests starts at the virtual time, or at its own count if larger.

        The virtual time is the count of the tenants in service: start-time fair queueing (Goyal, Vin and Cheng, 1996).
        """
        assert request.state is State.WAITING
        if request.tenant not in self._present():
            least = min((self._served_tokens[each.tenant] for each in self.running), default=0)
            self._virtual_time = max(self._virtual_time, least)
            self._served_tokens[request.tenant] = max(self._served_tokens.get(request.tenant, 0), self._virtual_time)
        self._waiting.setdefault(request.tenant, deque()).append(request)

    def remove(self, request: Request) -> list[int]:
        """End a request, waiting or running; return the pages that nobody holds now."""
        if request.state is State.WAITING:
            self._waiting[request.tenant].remove(request)
        else:
            self.running.remove(request)
        freed = self._free(request)
        request.state = State.ENDED
        self._leave_tenant(request.tenant)
        return freed

    def schedule(self) -> list[ScheduledRequest]:
        """Choose what to compute next; all pages are allocated."""
        decoding = [request for request in self.running if request.is_decoding]
        batch = [
            scheduled
            for request in decoding
            if (scheduled := self._allocate(request, min(request.num_uncomputed, BUSY_TOKENS)))
        ]
        left = BUSY_TOKENS if batch else IDLE_TOKENS
        reading, planned = [each for each in self.running if not each.is_decoding], Counter[str]()
        while left > 0 and (request := self._next_prompt(reading, planned)) is not None:
            if scheduled := self._allocate(request, min(request.num_uncomputed, left)):
                batch.append(scheduled)
                planned[request.tenant] += scheduled.num_tokens
                left -= scheduled.num_tokens
            # NOTE: at once, for a request that was preempted after it had been planned may be admitted again.
            batch = [scheduled for scheduled in batch if scheduled.request.state is State.RUNNING]
        batch = [scheduled for scheduled in batch if scheduled.request.state is State.RUNNING]
        # Side by side those of one adapter: its weights are read once.
        return sorted(batch, key=lambda scheduled: scheduled.request.adapter.name if scheduled.request.adapter else "")

    def add_draft_tokens(self, scheduled: ScheduledRequest, draft_tokens: Sequence[int]) -> ScheduledRequest:
        """Return the request with as many of these guesses as there is room for without taking anybody's pages."""
        table, start = scheduled.request.block_table, scheduled.start + scheduled.num_tokens
        while len(table) < num_pages_for(start + len(draft_tokens)) and (page := self.pool.allocate()) is not None:
            table.append(page)
        return replace(scheduled, draft_tokens=tuple(draft_tokens[: len(table) * PAGE_LEN - start]))

    def commit(self, request: Request, num_tokens: int) -> None:
        """Note that tokens of a request were computed; full pages can be shared from now on."""
        self._served_tokens[request.tenant] += num_tokens
        first, request.num_computed = request.num_computed // PAGE_LEN, request.num_computed + num_tokens
        full = range(first, request.num_computed // PAGE_LEN)
        if full:
            extend_keys(request.page_keys, request.tokens, self._salt(request))
        for index in full:
            self.pool.publish(request.block_table[index], request.page_keys[index])

    def check(self) -> None:
        """Assert what can be told from the running requests and counts: after every step."""
        self.pool.check()
        assert len(self.running) <= self.max_batch
        assert all(request.state is State.RUNNING for request in self.running)
        sizes = [len(request.block_table) for request in self.running]
        assert all(
            size >= num_pages_for(request.num_computed) for size, request in zip(sizes, self.running, strict=True)
        )
        assert max(sizes, default=0) <= self.pool.num_held <= sum(sizes), "pages that no request holds, or too few"

    def check_all(self) -> None:
        """Assert the invariants page by page and request by request, which takes milliseconds where there are many."""
        self.check()
        self.pool.check_all()
        assert all(request.state is State.WAITING and not request.block_table for request in self.waiting())
        assert len({page for request in self.running for page in request.block_table}) == self.pool.num_held

    def _next_prompt(self, reading: list[Request], planned: Counter[str]) -> Request | None:
        """Return the request whose prompt is read next, admitted if it waited; None if there is none.

        `reading` are running requests with unread prompts; `planned` counts the tokens of this step by tenant.
        """
        # NOTE: a request that was preempted in this step may have been admitted and planned again.
        reading[:] = [request for request in reading if request.state is State.RUNNING]
        tenants = {request.tenant for request in reading} | {name for name, queue in self._waiting.items() if queue}
        may_admit = True
        num_running = Counter(request.tenant for request in self.running)
        for tenant in sorted(
            tenants, key=lambda name: (self._served_tokens[name] + planned[name], num_running[name], name)
        ):
            if own := next((request for request in reading if request.tenant == tenant), None):
                reading.remove(own)
                if own.state is State.RUNNING:
                    return own
            queue = self._waiting.get(tenant)
            if not (may_admit and queue):
                continue
            is_full = len(self.running) >= self.max_batch
            if is_full and self._victim(tenant) is None:
                continue
            # Once: what a victim gives back is still found, and nothing else changes before the admission.
            shared = self._shared_pages(queue[0])
            if self._is_being_computed(queue[0], len(shared)):
                continue
            while not self._has_room(queue[0], shared):
                if (victim := self._victim(tenant)) is None:
                    # Nobody overtakes the one whose turn it is, or it might wait for ever.
                    may_admit = False
                    break
                self._preempt(victim)
            else:
                return self._admit(queue.popleft(), shared)
        return None

    def _has_room(self, request: Request, shared: Sequence[int]) -> bool:
        """Whether a waiting request can run now; if so, its adapter is held."""
        if len(self.running) >= self.max_batch:
            return False
        kept = sum(self.pool.is_cached(page) for page in shared)
        needed = num_pages_for(len(request.tokens)) - len(shared)
        if needed + kept + self._num_promised() > self.pool.num_available:
            return False
        return not request.adapter or bool(self.adapters and self.adapters.hold(request.adapter))

    def _admit(self, request: Request, shared: Sequence[int]) -> Request:
        for page in shared:
            self.pool.hold(page)
        request.block_table, request.num_computed = array("i", shared), len(shared) * PAGE_LEN
        request.state = State.RUNNING
        self.running.append(request)
        self._virtual_time = max(self._virtual_time, self._served_tokens[request.tenant])
        if not request.has_started:
            request.has_started = True
            self._num_cached_tokens += request.num_computed
            self._queue_seconds.append(time.monotonic() - request.submitted)
        return request

    def _victim(self, tenant: str) -> Request | None:
        """Return the request that makes way for `tenant`, if that runs fewer requests than an equal share of the batch.

        It is the youngest of the tenant that runs most, if that tenant runs more than an equal share and has had at
        least as many tokens. The oldest request of a tenant never makes way.
        """
        num_running = Counter(request.tenant for request in self.running)
        share = max(1, self.max_batch // len(self._present()))
        largest = max(num_running, key=num_running.__getitem__, default=tenant)
        if (
            num_running[largest] <= share
            or num_running[tenant] >= share
            or self._served_tokens[largest] < self._served_tokens[tenant]
        ):
            return None
        return next(request for request in reversed(self.running) if request.tenant == largest)

    def _shared_pages(self, request: Request) -> list[int]:
        """Return the pages that hold this request's beginning already; its last token is always computed."""
        if request.num_to_score:
            return []
        extend_keys(request.page_keys, request.tokens, self._salt(request))
        pages: list[int] = []
        for key in request.page_keys[: (len(request.tokens) - 1) // PAGE_LEN]:
            if (page := self.pool.lookup(key)) is None:
                break
            pages.append(page)
        return pages

    def _is_being_computed(self, request: Request, index: int) -> bool:
        """Whether a running request is about to fill the page of this index, the first that this waiting one lacks."""
        if request.num_to_score or index >= (len(request.tokens) - 1) // PAGE_LEN:
            return False
        key = request.page_keys[index]
        return any(
            other.num_computed <= index * PAGE_LEN and index < len(other.page_keys) and other.page_keys[index] == key
            for other in self.running
        )

    def _num_promised(self) -> int:
        """Pages that running requests still need for the tokens they have."""
        return sum(max(0, num_pages_for(len(request.tokens)) - len(request.block_table)) for request in self.running)

    def _allocate(self, request: Request, num_tokens: int) -> ScheduledRequest | None:
        """Give a request the pages for its next tokens; None if it had to give back its own instead."""
        while request.state is State.RUNNING and len(request.block_table) < num_pages_for(
            request.num_computed + num_tokens
        ):
            page = self.pool.allocate()
            if page is None:
                self._preempt(self.running[-1])
            else:
                request.block_table.append(page)
        return ScheduledRequest(request, num_tokens) if request.state is State.RUNNING else None

    def _preempt(self, request: Request) -> None:
        """Let a running request wait again. What it had computed is found again as long as its pages are kept."""
        self.running.remove(request)
        self._free(request)
        request.state = State.WAITING
        self._waiting.setdefault(request.tenant, deque()).appendleft(request)

    def _free(self, request: Request) -> list[int]:
        # The last first: of a beginning that several share the end is the first to be forgotten.
        freed = [page for page in reversed(request.block_table) if self.pool.release(page)]
        request.reset_computed()
        if self.adapters and request.adapter and request.state is State.RUNNING:
            self.adapters.release(request.adapter)
        return freed

    def _present(self) -> set[str]:
        """Return the tenants that have requests."""
        return {name for name, queue in self._waiting.items() if queue} | {each.tenant for each in self.running}

    def _leave_tenant(self, tenant: str) -> None:
        """Forget a tenant without requests, and absent ones that the virtual time has passed."""
        if not self._waiting.get(tenant):
            self._waiting.pop(tenant, None)
        present = self._present()
        if not present:
            self._served_tokens.clear()
            self._virtual_time = 0
        elif tenant not in present:
            for name in self._served_tokens.keys() - present:
                if self._served_tokens[name] <= self._virtual_time:
                    del self._served_tokens[name]

    def _salt(self, request: Request) -> bytes:
        """Tell apart whose pages can be shared: with another adapter the same text has other keys and values."""
        owner = repr((request.tenant, request.adapter)).encode()
        return hashlib.blake2b(owner, digest_size=32, key=self._secret).digest()
