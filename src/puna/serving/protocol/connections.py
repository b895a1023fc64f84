"""Open connections -> a bounded set: beyond a bound, the connection that has waited longest for its client is closed.

Counts connections in all and per address. A connection with a running answer is never closed for another.
"""

import ipaddress
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

MAX_CONNECTIONS = 4096
MAX_RESERVED_FILES = 256
MAX_OPEN_FILES = 65_536


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on connections and on the time a client may take.

    Attributes:
        total: Connections in all.
        per_address: Connections from one IPv4 address or one IPv6 network of 64 bits.
        head_seconds: From the first byte of a request, or from connecting, to the end of its headers.
        idle_seconds: Between two requests.
        stall_seconds: During which a client reads nothing of an answer that is ready.

    Example:
        >>> ConnectionLimits(total=64, per_address=32).head_seconds
        20.0
    """

    total: int
    per_address: int
    head_seconds: float = 20.0
    idle_seconds: float = 75.0
    stall_seconds: float = 60.0


class Connection(Protocol):
    """The part of a connection that the bounds need."""

    address: str

    def give_way(self) -> None:
        """Close at once, for the sake of a new connection."""
        ...


class Connections:
    """Registry of open connections; connections that wait for a client are in order, oldest first."""

    def __init__(self, limits: ConnectionLimits):
        self.limits = limits
        self._per_address: Counter[str] = Counter()
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._all_waiting: dict[Connection, None] = {}

    @property
    def num_open(self) -> int:
        return self._per_address.total()

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; return False where a bound is reached and no other connection can give way."""
        address = connection.address
        is_crowded = self._per_address[address] >= self.limits.per_address
        is_full = self.num_open >= self.limits.total
        self._per_address[address] += 1
        if is_crowded or is_full:
            candidates = self._waiting.get(address, {}) if is_crowded else self._all_waiting
            oldest = next(iter(candidates), None)
            if oldest is None:
                return False
            self.set_waiting(oldest, is_waiting=False)
            oldest.give_way()
        self.set_waiting(connection, is_waiting=True)
        return True

    def set_waiting(self, connection: Connection, *, is_waiting: bool) -> None:
        """Note whether the client has still to send something."""
        if is_waiting == (connection in self._all_waiting):
            return
        if is_waiting:
            self._all_waiting[connection] = None
            self._waiting.setdefault(connection.address, {})[connection] = None
            return
        del self._all_waiting[connection]
        of_address = self._waiting[connection.address]
        del of_address[connection]
        if not of_address:
            del self._waiting[connection.address]

    def forget(self, connection: Connection) -> None:
        """Stop counting a connection that is lost."""
        self.set_waiting(connection, is_waiting=False)
        self._per_address[connection.address] -= 1
        if not self._per_address[connection.address]:
            del self._per_address[connection.address]


def address_key(host: str) -> str:
    """Return what counts as one client: an IPv4 address, or the IPv6 network that one subscriber has.

    Example:
        >>> address_key("::ffff:10.0.0.7"), address_key("2001:db8::1:2")
        ('10.0.0.7', '2001:db8::/64')
    """
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address.packed[:8] + bytes(8), 64)))


def default_limits(per_address: int = 0) -> ConnectionLimits:
    """Derive the bounds from the limit of open files, which leaves a part to files, pipes and threads.

    Args:
        per_address: Connections from one address; 0 for half of all.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    total = min(MAX_CONNECTIONS, soft - min(MAX_RESERVED_FILES, soft // 2))
    return ConnectionLimits(total, min(total, per_address or max(1, total // 2)))


def raise_open_files() -> None:
    """Raise this process's soft limit of open files as far as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
