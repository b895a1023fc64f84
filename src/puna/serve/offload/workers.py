"""Functions that large requests need -> a thread of their own with a bounded queue.

NOTE: Python's lock (GIL) lets one thread run at a time. With many threads the event loop would get a turn as rarely as
one of them, so large requests wait for one another instead.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from puna.serve.refusals import overloaded

MAX_WAITING = 64
# Reading, rendering and tokenizing fewer bytes takes some milliseconds.
LARGE_BYTES = 1 << 16

Result = TypeVar("Result")


class Workers:
    """Runs functions in threads: those of large requests in one, one after another.

    Example:
        >>> asyncio.run(Workers().run(len, "a text", num_bytes=1 << 20))
        6
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-request")
        self._num_waiting = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[..., Result], *arguments: object, num_bytes: int) -> Result:
        """Call a function of a request with `num_bytes` in its body; Refusal (503) where too many wait."""
        if num_bytes <= LARGE_BYTES:
            return await asyncio.to_thread(function, *arguments)
        if self._num_waiting >= MAX_WAITING:
            raise overloaded("Too many large requests are waiting to be read.")
        self._count(1)
        job = self._thread.submit(function, *arguments)
        job.add_done_callback(lambda _: self._count(-1))
        return await asyncio.wrap_future(job)

    def _count(self, more: int) -> None:
        with self._lock:
            self._num_waiting += more
