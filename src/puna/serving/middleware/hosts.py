"""Host header: HttpError (403) for names of foreign machines, on a server without keys.

A web page can resolve a domain to 127.0.0.1 (DNS rebinding). Without keys, only the Host header reveals the attack.
"""

import ipaddress
from collections.abc import Set

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from puna.serving.errors import HttpError
from puna.serving.middleware.keys import MAKE_KEY, SERVE_WITH_KEY

MAX_HOST_SHOWN = 80


class HostsMiddleware:
    """Middleware: accepts only Host headers in `hosts`; empty `hosts` accept any header."""

    def __init__(self, app: ASGIApp, hosts: Set[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.hosts and (name := _host_name(Headers(scope=scope).get("host", ""))) not in self.hosts:
            raise HttpError(403, _explain_host(name), code="host_not_allowed")
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Tell whether `host` is a loopback address, reachable from the machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_hosts(host: str) -> frozenset[str]:
    """Return the Host headers accepted by a server on `host`."""
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host})


def _host_name(header: str) -> str:
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


def _explain_host(name: str) -> str:
    """Return the error message, with the way to serve containers and remote machines.

    NOTE: an attacking web page can read the message; the message must not reveal the checkpoint.
    """
    return (
        f"Without a key this server answers requests for localhost and 127.0.0.1 only, and this one is for "
        f"{name[:MAX_HOST_SHOWN]!a}. Containers and other machines need a key. Make one: {MAKE_KEY} > keys.txt. "
        f"Serve with it: {SERVE_WITH_KEY}. Send it as Authorization: Bearer KEY."
    )
