"""Number of held continuations by tenant -> admission of a request, or a 503 with Retry-After.

Every tenant may hold an equal share of the queue. The engine's scheduler decides the order within the queue.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from puna.pipeline.errors import RequestError
from puna.serving.errors import HttpError

# Number of latest continuations for the estimate of a tenant's rate.
NUM_TIMED = 64
LEAST_SECONDS, MOST_SECONDS = 1, 60
# 503 responses: BURST at once per tenant, then a rate for all tenants together; the delay has an upper bound.
BURST, REFUSALS_PER_SECOND, MOST_DELAY = 10, 40.0, 5.0


@dataclass(slots=True)
class _Held:
    """Continuations of one tenant, and the times of the latest ends."""

    count: int = 0
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_TIMED))


class Admission:
    """Bound on held continuations: every tenant's share is `max_held` divided by the number of present tenants.

    A new tenant always gets the whole share, even while early tenants exceed the new, smaller shares. Hence T tenants
    hold at most `max_held` * (1 + 1/2 + ... + 1/T) together, and `max_held` once all tenants are within the shares.

    Example:
        >>> admission = Admission(256)
        >>> admission.take("alba", 256)
        >>> admission.take("brook", 128)
    """

    def __init__(self, max_held: int, *, noun: str = "continuations", clock: Callable[[], float] = time.monotonic):
        self.max_held, self._noun = max_held, noun
        self._clock = clock
        self._tenants: dict[str, _Held] = {}

    @property
    def held(self) -> dict[str, int]:
        """Return the number of continuations of every present tenant."""
        return {tenant: held.count for tenant, held in self._tenants.items()}

    def take(self, tenant: str, size: int) -> None:
        """Let `size` continuations join; raise as `require_room` does."""
        self.require_room(tenant, size)
        self._tenants.setdefault(tenant, _Held()).count += size

    def release(self, tenant: str, size: int = 1) -> None:
        """Count continuations as ended."""
        held = self._tenants[tenant]
        held.count -= size
        held.finished.append(self._clock())
        if not held.count:
            del self._tenants[tenant]

    def require_room(self, tenant: str, size: int) -> None:
        """Raise unless `size` continuations may join.

        Raises:
            RequestError: The request is larger than the whole queue.
            HttpError: Status 503. Retry-After estimates the time until enough requests of the tenant end, 1 to 60
                seconds.
        """
        if size > self.max_held:
            given, expected = f"{size} continuations in one request", f"at most {self.max_held}"
            raise RequestError(given, expected=expected, param="n", hint="Split the request")
        held = self._tenants.get(tenant, _Held())
        num_tenants = len(self._tenants.keys() | {tenant})
        share = max(1, self.max_held // num_tenants)
        if held.count + size <= share:
            return
        if size > share:
            message = (
                f"{size} continuations in one request, and the share of each of {num_tenants} tenants is {share} of "
                f"{self.max_held}. Ask for at most {share} at once, or come back when there are fewer tenants."
            )
            seconds = MOST_SECONDS
        else:
            whose = "of" if num_tenants == 1 else "of your share of"
            message = f"The queue is full: {held.count} {whose} {share} {self._noun} are under way."
            seconds = self._seconds_until(held, held.count + size - share)
        raise HttpError(503, message, code="overloaded", headers={"retry-after": str(seconds)})

    def _seconds_until(self, held: _Held, num_finished: int) -> int:
        """Estimate the time until `num_finished` more continuations of a tenant have ended."""
        if len(held.finished) < 2:
            return LEAST_SECONDS
        # NOTE: measured up to now, not up to the last end: a stalled tenant counts as slow.
        seconds_each = (self._clock() - held.finished[0]) / len(held.finished)
        return min(max(math.ceil(seconds_each * num_finished), LEAST_SECONDS), MOST_SECONDS)


class RefusalPace:
    """Delay of 503 responses to tenants with clients that retry at once.

    A rejected request costs a millisecond of CPU time. Hundreds per second slow token delivery: without the delay, a
    fourfold load halved the number of answers.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._next: dict[str, float] = {}

    async def admit(self, tenant: str, take: Callable[[], None]) -> None:
        """Call `take`; after an HttpError, wait for the delay and call `take` again."""
        try:
            take()
        except HttpError:
            if (delay := self.delay(tenant)) > 0:
                await asyncio.sleep(delay)
            take()

    def delay(self, tenant: str) -> float:
        """Return the delay of the next 503 response, in seconds."""
        now = self._clock()
        self._next = {name: due for name, due in self._next.items() if due > now - MOST_DELAY}
        seconds_each = max(1, sum(due > now for due in self._next.values())) / REFUSALS_PER_SECOND
        due = max(self._next.get(tenant, -math.inf), now - BURST * seconds_each)
        self._next[tenant] = min(due + seconds_each, now + MOST_DELAY)
        return min(max(due - now, 0.0), MOST_DELAY)
