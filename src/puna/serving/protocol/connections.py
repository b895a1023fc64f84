"""Limits on open connections, in total and per address.

Beyond a limit, the longest idle connection is closed. A connection with a running response is never closed for another
connection.
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
    """Limits on the number of connections and on the time of clients.

    Attributes:
        total: Number of connections.
        per_address: Number of connections from an IPv4 address or IPv6 /64 network.
        head_seconds: Time from connecting, or from the first byte of a request, to the end of the headers.
        idle_seconds: Time between two requests.
        stall_seconds: Time without progress while a client reads a response.

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
    """Interface of a connection for the registry."""

    address: str

    def give_way(self) -> None:
        """Close at once, in favour of a new connection."""
        ...


class Connections:
    """Registry of open connections; idle connections are ordered, oldest first."""

    def __init__(self, limits: ConnectionLimits):
        self.limits = limits
        self._per_address: Counter[str] = Counter()
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._all_waiting: dict[Connection, None] = {}

    @property
    def num_open(self) -> int:
        return self._per_address.total()

    def admit(self, connection: Connection) -> bool:
        """Register a new connection; return False at a limit without an idle connection to close."""
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
        """Mark a connection as waiting for its client, or as busy."""
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
        """Remove a closed connection."""
        self.set_waiting(connection, is_waiting=False)
        self._per_address[connection.address] -= 1
        if not self._per_address[connection.address]:
            del self._per_address[connection.address]


def address_key(host: str) -> str:
    """Return the key of a client: an IPv4 address, or the /64 network of an IPv6 address.

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
    """Derive the limits from the process's limit of open files, with a reserve for files and pipes.

    Args:
        per_address: Number of connections from an address; 0 for half of the total.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    total = min(MAX_CONNECTIONS, soft - min(MAX_RESERVED_FILES, soft // 2))
    return ConnectionLimits(total, min(total, per_address or max(1, total // 2)))


def raise_open_files() -> None:
    """Raise the process's soft limit of open files, at most to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
