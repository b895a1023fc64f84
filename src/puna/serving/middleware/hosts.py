"""Host header -> HttpError (403) for any name but this machine's, on a server without keys.

A web page can point a name at 127.0.0.1 (DNS rebinding): without keys, the Host header alone shows that.
"""

import ipaddress
from collections.abc import Set

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from puna.serving.errors import HttpError
from puna.serving.middleware.keys import MAKE_KEY, SERVE_WITH_KEY

MAX_HOST_SHOWN = 80


class HostsMiddleware:
    """Hands on requests for one of `hosts`; without `hosts` any Host header will do."""

    def __init__(self, app: ASGIApp, hosts: Set[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.hosts and (name := _host_name(Headers(scope=scope).get("host", ""))) not in self.hosts:
            raise HttpError(403, _explain_host(name), code="host_not_allowed")
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_hosts(host: str) -> frozenset[str]:
    """Return the Host headers' names for a server that listens on `host`."""
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host})


def _host_name(header: str) -> str:
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


def _explain_host(name: str) -> str:
    """Say why a request for another host is refused, and how containers and other machines are let in.

    NOTE: a page that rebinds a name can read this message, so the message says nothing about the checkpoint.
    """
    return (
        f"Without a key this server answers requests for localhost and 127.0.0.1 only, and this one is for "
        f"{name[:MAX_HOST_SHOWN]!a}. Containers and other machines need a key. Make one: {MAKE_KEY} > keys.txt. "
        f"Serve with it: {SERVE_WITH_KEY}. Send it as Authorization: Bearer KEY."
    )
