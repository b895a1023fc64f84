"""Command-line flags -> rules for requests, and the stack of middlewares.

http_syntax, hosts, keys, concurrency and body_limit raise HttpErrors; errors.py sends the responses. No middleware
parses bodies.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from puna.pipeline.errors import ConfigError
from puna.serving.middleware.body_limit import BodyLimitMiddleware
from puna.serving.middleware.concurrency import ConcurrencyMiddleware
from puna.serving.middleware.errors import ErrorsMiddleware
from puna.serving.middleware.hosts import HostsMiddleware, is_loopback, own_hosts
from puna.serving.middleware.http_syntax import HttpSyntaxMiddleware
from puna.serving.middleware.keys import (
    KEY_VARIABLE,
    MAKE_KEY,
    SERVE_WITH_KEY,
    KeysMiddleware,
    Tenant,
    read_tenants,
)
from puna.serving.protocol.connections import ConnectionLimits


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and permissions for requests. Example: see `make_rules`.

    Without `tenants` requests need no key; without `hosts` any Host header is accepted. Web pages of `origins` may read
    responses (browser/origins.py), with the same keys.
    """

    tenants: Mapping[bytes, Tenant] = field(default_factory=dict)  # by the hashes of their keys
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    max_requests: int = 1024
    connections: ConnectionLimits | None = None  # None: derived from the limit of open files


def make_rules(host: str, key_file: Path | None, environment: Mapping[str, str]) -> Rules:
    """Read the keys and check that `host` is safe.

    A line of `key_file` is a key, then the models of the key (default: all); PUNA_API_KEY is a key for all models.

    Raises:
        ConfigError: A weak or unreadable key, or an address beyond loopback without a key.

    Example:
        >>> sorted(make_rules("127.0.0.1", None, {}).hosts)
        ['127.0.0.1', '[::1]', 'localhost']
    """
    tenants = read_tenants(key_file, environment)
    if not tenants and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines and no key is set",
            expected=f"--api-key-file or {KEY_VARIABLE}, or a host such as 127.0.0.1",
            hint=f"{MAKE_KEY} > keys.txt, then: {SERVE_WITH_KEY.replace('0.0.0.0', shlex.quote(host))}",
        )
    return Rules(tenants, frozenset() if tenants else own_hosts(host))


class RulesMiddleware:
    """Stack of middlewares: errors, HTTP syntax, hosts, keys, concurrency, body limit, in this order."""

    def __init__(self, app: ASGIApp, rules: Rules):
        self.app = app
        guarded: ASGIApp = BodyLimitMiddleware(app, max_bytes=rules.max_body_bytes, seconds=rules.body_seconds)
        guarded = ConcurrencyMiddleware(guarded, rules.max_requests)
        guarded = KeysMiddleware(guarded, rules.tenants)
        self.guarded: ASGIApp = ErrorsMiddleware(HttpSyntaxMiddleware(HostsMiddleware(guarded, rules.hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if scope["type"] == "lifespan" else self.guarded)(scope, receive, send)
