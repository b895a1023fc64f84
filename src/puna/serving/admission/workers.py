"""Work for large requests -> one separate thread with a bounded queue.

NOTE: Python's lock (GIL) lets one thread run at a time. With many threads the event loop would rarely get a turn, so
large requests wait for one another instead.
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
    """Runs functions in threads; the functions of large requests share one thread.

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
        """Call a function of a request with `num_bytes` in its body.

        A tenant has one place before the thread: other tenants wait for one large request of a tenant, never for all.

        Raises:
            HttpError: Status 503. The tenant has more than its share of large requests waiting.
        """
        if num_bytes <= LARGE_BYTES:
            return await asyncio.to_thread(function, *arguments)
        self._admission.take(tenant, 1)
        try:
            async with self._turns[tenant]:
                return await asyncio.wrap_future(self._thread.submit(function, *arguments))
        finally:
            self._admission.release(tenant)
