"""Waiting and running requests -> the batch of the next step: continuous batching with chunked prefill.

Every decoding request gets a token in every step. Prompts take the rest of the step's token budget in chunks, first the
prompts of the tenant with the fewest served tokens, running requests before waiting requests, first come first served.
Admission needs free pages for the tokens so far, and memory for the adapter. When pages run out, the youngest request
is preempted. A tenant above an equal share of the batch is preempted for a waiting tenant below an equal share. A
prompt waits while a running request computes the same prefix.
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

# Prompt token budget of a step: small beside decoding requests, for latency; large otherwise.
BUSY_TOKENS = 256
IDLE_TOKENS = 2048
MAX_STARTED = 1024


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """The next `num_tokens` uncomputed tokens of a request, followed by draft tokens.

    Example: `Scheduler.schedule`.
    """

    request: Request
    num_tokens: int
    draft_tokens: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        return self.request.num_computed

    @property
    def is_sampled(self) -> bool:
        """Whether the step samples a token: the scheduled tokens are the last of the request."""
        return self.num_tokens == self.request.num_uncomputed


class Scheduler:
    """Queues of all tenants and the running requests.

    Invariant: a request waits in the queue of its tenant, runs with allocated pages, or has ended without pages.

    Example:
        >>> scheduler = Scheduler(PagePool(100), max_batch=4)
        >>> scheduler.add(request)
        >>> [scheduled.num_tokens for scheduled in scheduler.schedule()]
        [12]
    """

    def __init__(self, pool: PagePool, *, max_batch: int, adapters: Adapters | None = None):
        self.pool, self.max_batch, self.adapters = pool, max_batch, adapters
        self.running: list[Request] = []
        self._waiting: dict[str, deque[Request]] = {}
        # Of tenants with requests, and of absent tenants ahead of the virtual time.
        self._served_tokens: dict[str, int] = {}
        self._virtual_time = 0
        # Statistics of started requests; bounded, since only a server reads them.
        self._num_cached_tokens, self._queue_seconds = 0, deque[float](maxlen=MAX_STARTED)
        self._secret = secrets.token_bytes(32)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def num_waiting_by_tenant(self) -> dict[str, int]:
        return {tenant: len(queue) for tenant, queue in self._waiting.items() if queue}

    def take_started(self) -> tuple[int, list[float]]:
        """Return cached prompt tokens and queue times of the requests started since the last call."""
        started = self._num_cached_tokens, list(self._queue_seconds)
        self._num_cached_tokens = 0
        self._queue_seconds.clear()
        return started

    def waiting(self) -> Iterable[Request]:
        return (request for queue in self._waiting.values() for request in queue)

    def add(self, request: Request) -> None:
        """Queue a new request.

        A tenant without requests starts at the virtual time, or at the tenant's own count if larger. The virtual time
        follows the served tokens of running tenants: start-time fair queueing (Goyal, Vin and Cheng, 1996).
        """
        assert request.state is State.WAITING
        if request.tenant not in self._present():
            least = min((self._served_tokens[each.tenant] for each in self.running), default=0)
            self._virtual_time = max(self._virtual_time, least)
            self._served_tokens[request.tenant] = max(self._served_tokens.get(request.tenant, 0), self._virtual_time)
        self._waiting.setdefault(request.tenant, deque()).append(request)

    def remove(self, request: Request) -> list[int]:
        """End a waiting or running request; return pages left without a holder."""
        if request.state is State.WAITING:
            self._waiting[request.tenant].remove(request)
        else:
            self.running.remove(request)
        freed = self._free(request)
        request.state = State.ENDED
        self._leave_tenant(request.tenant)
        return freed

    def schedule(self) -> list[ScheduledRequest]:
        """Return the batch of the next step, with all pages allocated."""
        decoding = [request for request in self.running if request.is_decoding]
        batch = [
            scheduled
            for request in decoding
            if (scheduled := self._allocate(request, min(request.num_uncomputed, BUSY_TOKENS)))
        ]
        budget = BUSY_TOKENS if batch else IDLE_TOKENS
        reading, planned = [each for each in self.running if not each.is_decoding], Counter[str]()
        while budget > 0 and (request := self._next_prompt(reading, planned)) is not None:
            if scheduled := self._allocate(request, min(request.num_uncomputed, budget)):
                batch.append(scheduled)
                planned[request.tenant] += scheduled.num_tokens
                budget -= scheduled.num_tokens
            # NOTE: filter here, since a preempted request can be admitted and scheduled again within this loop.
            batch = [scheduled for scheduled in batch if scheduled.request.state is State.RUNNING]
        batch = [scheduled for scheduled in batch if scheduled.request.state is State.RUNNING]
        # Neighbours with one adapter share one read of the adapter's weights.
        return sorted(batch, key=lambda scheduled: scheduled.request.adapter.name if scheduled.request.adapter else "")

    def add_draft_tokens(self, scheduled: ScheduledRequest, draft_tokens: Sequence[int]) -> ScheduledRequest:
        """Add the draft tokens that fit into free pages, without preemption."""
        table, start = scheduled.request.block_table, scheduled.start + scheduled.num_tokens
        while len(table) < num_pages_for(start + len(draft_tokens)) and (page := self.pool.allocate()) is not None:
            table.append(page)
        return replace(scheduled, draft_tokens=tuple(draft_tokens[: len(table) * PAGE_LEN - start]))

    def commit(self, request: Request, num_tokens: int) -> None:
        """Record computed tokens of a request; full pages enter the prefix index."""
        self._served_tokens[request.tenant] += num_tokens
        first, request.num_computed = request.num_computed // PAGE_LEN, request.num_computed + num_tokens
        full = range(first, request.num_computed // PAGE_LEN)
        if full:
            extend_keys(request.page_keys, request.tokens, self._salt(request))
        for index in full:
            self.pool.publish(request.block_table[index], request.page_keys[index])

    def check(self) -> None:
        """Assert the invariants of running requests and page counts; cheap enough for every step."""
        self.pool.check()
        assert len(self.running) <= self.max_batch
        assert all(request.state is State.RUNNING for request in self.running)
        sizes = [len(request.block_table) for request in self.running]
        assert all(
            size >= num_pages_for(request.num_computed) for size, request in zip(sizes, self.running, strict=True)
        )
        assert max(sizes, default=0) <= self.pool.num_held <= sum(sizes), "held pages fit no request"

    def check_all(self) -> None:
        """Assert the invariants of every page and request; takes milliseconds for large caches."""
        self.check()
        self.pool.check_all()
        assert all(request.state is State.WAITING and not request.block_table for request in self.waiting())
        assert len({page for request in self.running for page in request.block_table}) == self.pool.num_held

    def _next_prompt(self, reading: list[Request], planned: Counter[str]) -> Request | None:
        """Return the next request to prefill, admitting a waiting request if needed; None without a candidate.

        Args:
            reading: Running requests with uncomputed prompt tokens.
            planned: Scheduled tokens of this step by tenant.
        """
        # NOTE: this step may have preempted and admitted a request of `reading` already.
        reading[:] = [request for request in reading if request.state is State.RUNNING]
        tenants = {request.tenant for request in reading} | {name for name, queue in self._waiting.items() if queue}
        may_admit = True
        num_running = Counter(request.tenant for request in self.running)
        for tenant in sorted(
            tenants, key=lambda name: (self._served_tokens[name] + planned[name], num_running[name], name)
        ):
            if running := next((request for request in reading if request.tenant == tenant), None):
                reading.remove(running)
                if running.state is State.RUNNING:
                    return running
            queue = self._waiting.get(tenant)
            if not (may_admit and queue):
                continue
            is_full = len(self.running) >= self.max_batch
            if is_full and self._victim(tenant) is None:
                continue
            # One lookup suffices: pages of preempted requests stay in the prefix index until allocation.
            shared = self._shared_pages(queue[0])
            if self._is_being_computed(queue[0], len(shared)):
                continue
            while not self._has_room(queue[0], shared):
                if (victim := self._victim(tenant)) is None:
                    # No later request may overtake, or this request could starve.
                    may_admit = False
                    break
                self._preempt(victim)
            else:
                return self._admit(queue.popleft(), shared)
        return None

    def _has_room(self, request: Request, shared: Sequence[int]) -> bool:
        """Whether pages, batch and adapter memory suffice for a waiting request; holds the adapter if so."""
        if len(self.running) >= self.max_batch:
            return False
        num_cached = sum(self.pool.is_cached(page) for page in shared)
        needed = num_pages_for(len(request.tokens)) - len(shared)
        if needed + num_cached + self._num_promised() > self.pool.num_available:
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
        """Return the running request to preempt for `tenant`, which runs less than an equal share of the batch.

        The victim is the youngest request of the tenant with most running requests, if that tenant runs more than an
        equal share and has at least as many served tokens. The oldest request of a tenant is never preempted.
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
        """Return cached pages of the request's prefix; the last token is always computed."""
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
        """Whether a running request computes the first page that the waiting request lacks."""
        if request.num_to_score or index >= (len(request.tokens) - 1) // PAGE_LEN:
            return False
        key = request.page_keys[index]
        return any(
            other.num_computed <= index * PAGE_LEN and index < len(other.page_keys) and other.page_keys[index] == key
            for other in self.running
        )

    def _num_promised(self) -> int:
        """Pages that running requests need for their tokens beyond allocated pages."""
        return sum(max(0, num_pages_for(len(request.tokens)) - len(request.block_table)) for request in self.running)

    def _allocate(self, request: Request, num_tokens: int) -> ScheduledRequest | None:
        """Allocate pages for the next tokens of a request; None if the request itself was preempted."""
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
        """Return a running request to the queue; the prefix cache may keep the computed pages."""
        self.running.remove(request)
        self._free(request)
        request.state = State.WAITING
        self._waiting.setdefault(request.tenant, deque()).appendleft(request)

    def _free(self, request: Request) -> list[int]:
        # Last page first: eviction should shorten a shared prefix from its end.
        freed = [page for page in reversed(request.block_table) if self.pool.release(page)]
        request.reset_computed()
        if self.adapters and request.adapter and request.state is State.RUNNING:
            self.adapters.release(request.adapter)
        return freed

    def _present(self) -> set[str]:
        """Return tenants with waiting or running requests."""
        return {name for name, queue in self._waiting.items() if queue} | {each.tenant for each in self.running}

    def _leave_tenant(self, tenant: str) -> None:
        """Drop counts of absent tenants behind the virtual time."""
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
        """Return the hash key of a tenant and adapter; adapters change the keys and values of equal text."""
        owner = repr((request.tenant, request.adapter)).encode()
        return hashlib.blake2b(owner, digest_size=32, key=self._secret).digest()
