"""Rate limit of the log: a number of lines per kind and second, then "... 1,234 more lines like this"."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOGGERS = ("uvicorn.error", "uvicorn.access", "asyncio", "puna.serving")
LINES_PER_SECOND = 20
MAX_VALUE_CHARS = 400

logger = logging.getLogger("uvicorn.error")


@dataclass(slots=True)
class _Kind:
    name: str
    level: int
    num_lines: int = 0


class LogLimit(logging.Filter):
    """Filter for loggers: a kind of line is a logger, a level and a message before its values are filled in.

    Example:
        >>> limit = LogLimit(lines_per_second=1)
        >>> record = logging.makeLogRecord({"name": "puna.serving", "msg": "slow"})
        >>> limit.filter(record), limit.filter(record)
        (True, False)
    """

    def __init__(self, lines_per_second: int = LINES_PER_SECOND, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._most, self._clock = lines_per_second, clock
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._second = clock()
        self._lock = threading.Lock()

    def install(self) -> None:
        """Put the filter before the server's loggers."""
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        """Undo `install`; log the numbers of left-out lines."""
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)
        self.flush()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written."""
        if self._clock() - self._second >= 1.0:
            self.flush()
        with self._lock:
            key = (record.name, record.levelno, str(record.msg))
            kind = self._kinds.setdefault(key, _Kind(record.name, record.levelno))
            kind.num_lines += 1
            if kind.num_lines > self._most:
                return False
        if isinstance(record.args, tuple):
            record.args = tuple(_cut(value) for value in record.args)
        return True

    def flush(self) -> None:
        """Begin a new second; log the number of left-out lines of every kind."""
        with self._lock:
            kinds, self._kinds, self._second = self._kinds, {}, self._clock()
        for (_, _, message), kind in kinds.items():
            if kind.num_lines > self._most:
                more = f"{kind.num_lines - self._most:,}"
                logger.log(kind.level, "... %s more lines like this: %s %s", more, kind.name, _cut(message))


def _cut(value: Any) -> Any:
    is_long = isinstance(value, str) and len(value) > MAX_VALUE_CHARS
    return f"{value[:MAX_VALUE_CHARS]}... ({len(value):,} characters)" if is_long else value
