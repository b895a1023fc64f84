"""Threads for parsing and tokenizing; large requests share a single thread with a bounded queue.

NOTE: the GIL runs a single thread at a time. Many busy threads would starve the event loop, so large requests queue.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from puna.serving.admission.admission import Admission

MAX_WAITING = 64
# Reading, rendering and tokenizing fewer bytes takes some milliseconds.
LARGE_BYTES = 1 << 16

Result = TypeVar("Result")


class Workers:
    """Thread pool for request preparation; large requests share a single thread.

    Example:
        >>> asyncio.run(Workers().run(len, "a text", num_bytes=1 << 20))
        6
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._admission = Admission(MAX_WAITING, noun="large requests")
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(1))

    async def run(
        self, function: Callable[..., Result], *arguments: object, num_bytes: int, tenant: str = ""
    ) -> Result:
        """Call a function for a request with a body of `num_bytes`.

        Tenants take turns in the queue: no tenant waits for several requests of a different tenant.

        Raises:
            HttpError: Status 503. The tenant's share of the queue is full.
        """
        if num_bytes <= LARGE_BYTES:
            return await asyncio.to_thread(function, *arguments)
        self._admission.take(tenant, 1)
        try:
            async with self._turns[tenant]:
                return await asyncio.wrap_future(self._thread.submit(function, *arguments))
        finally:
            self._admission.release(tenant)
