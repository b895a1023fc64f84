"""Every HTTP request -> refused, or handed on with its whole body: key, Host header, size and number are judged here.

Default deny: a route is open only if it is named in OPEN_PATHS, the chat page's files among them. Does not look into
bodies.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.errors import ConfigError
from puna.serve.browser.page import FILES
from puna.serve.refusals import Refusal, overloaded

OPEN_PATHS = frozenset({"/health", *FILES})
KEY_VARIABLE = "PUNA_API_KEY"
MIN_KEY_LEN = 32
MAKE_KEY = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
KEY_HINT = f"{MAKE_KEY} makes a good one"
SERVE_WITH_KEY = "puna serve CHECKPOINT --host 0.0.0.0 --api-key-file keys.txt"
DRAIN_SECONDS = 2.0
MAX_HOST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks, and for which models only (None: all). Tenants share the machine, and nothing of what they ask."""

    name: str = ""
    models: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What the gate holds requests to. No `tenants`: no key is asked for; no `hosts`: any Host header will do.

    Web pages of `origins` may read the answers (browser/origins.py); the keys hold for them too.
    """

    tenants: Mapping[bytes, Tenant] = field(default_factory=dict)  # by the hashes of their keys
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    max_requests: int = 1024


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_rules(host: str, key_file: Path | None, environment: Mapping[str, str]) -> Rules:
    """Collect the keys and judge whether `host` may be listened on.

    A line of `key_file` is a key and, if it is not for all, the models that it is for; PUNA_API_KEY is one for all.
    Raises ConfigError for a weak or unreadable key, and for an address beyond loopback without any.
    """
    lines = [(f"the variable {KEY_VARIABLE}", [environment[KEY_VARIABLE]])] if KEY_VARIABLE in environment else []
    lines += [(f"the key in {key_file}", line.split()) for line in _read_lines(key_file)] if key_file else []
    tenants: dict[bytes, Tenant] = {}
    for place, (origin, (key, *models)) in enumerate(lines):
        if len(key) < MIN_KEY_LEN or not (key.isascii() and key.isprintable() and " " not in key):
            expected = f"at least {MIN_KEY_LEN} printable ASCII characters without spaces"
            raise ConfigError(f"{origin} has {len(key)} characters", expected=expected, hint=KEY_HINT)
        tenants[_hash(key.encode())] = Tenant(str(place), frozenset(models) if models else None)
    if not tenants and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines and no key is set",
            expected=f"--api-key-file or {KEY_VARIABLE}, or a host such as 127.0.0.1",
            hint=f"{MAKE_KEY} > keys.txt, then: {SERVE_WITH_KEY.replace('0.0.0.0', shlex.quote(host))}",
        )
    # A web page can point its own name at 127.0.0.1 (DNS rebinding); without a key only the Host header tells.
    own = f"[{host}]" if ":" in host else host
    return Rules(tenants, frozenset() if tenants else frozenset({"localhost", "127.0.0.1", "[::1]", own}))


class Gate:
    """The one middleware: judges a request by `rules` before anything else sees it."""

    def __init__(self, app: ASGIApp, rules: Rules):
        self.app, self.rules = app, rules
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        self._num_requests += 1
        body = _Body(receive)
        try:
            headers = Headers(scope=scope)
            scope.setdefault("state", {})["tenant"] = self._judge(scope["path"], headers)
            whole = await body.read(headers, self.rules)
            if whole is not None:
                await self.app(scope, _replay(whole, receive), send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, _unfinished(send))
            await body.discard()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._num_requests -= 1

    def _judge(self, path: str, headers: Headers) -> Tenant:
        """Return the tenant whose key was given; where none is asked for all are one."""
        hosts = self.rules.hosts
        if hosts and (name := _host_name(headers.get("host", ""))) not in hosts:
            raise Refusal(403, _explain_host(name), code="host_not_allowed")
        if path in OPEN_PATHS:
            return Tenant()
        tenant = self._find_tenant(headers) if self.rules.tenants else Tenant()
        if tenant is None:
            challenge = {"www-authenticate": "Bearer"}
            message = (
                "A valid key is needed: Authorization: Bearer KEY. "
                f"Keys are the lines of the server's --api-key-file, and its variable {KEY_VARIABLE}."
            )
            raise Refusal(401, message, code="invalid_api_key", headers=challenge)
        if self._num_requests > self.rules.max_requests:
            raise overloaded(f"The server is answering {self.rules.max_requests} requests already.")
        return tenant

    def _find_tenant(self, headers: Headers) -> Tenant | None:
        """Return whose key was given, None if it is nobody's; all are compared, whichever it is."""
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        hashed = _hash(key.strip().encode("latin-1"))
        found = [tenant for known, tenant in self.rules.tenants.items() if hmac.compare_digest(hashed, known)]
        return found[0] if scheme.lower() == "bearer" and found else None


class _Body:
    """A request's body as it comes in."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._is_whole = False

    async def read(self, headers: Headers, rules: Rules) -> bytes | None:
        """Return the whole body, None if the client went away; Refusal once it is too large or too slow."""
        too_large = Refusal(413, f"The body has more than {rules.max_body_bytes:,} bytes.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > rules.max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(rules.body_seconds):
                while not self._is_whole:
                    message = await self._next()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > rules.max_body_bytes:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"The body took longer than {rules.body_seconds:g} seconds.") from None
        return bytes(body)

    async def discard(self) -> None:
        """Let a refused client finish its body: a socket that is closed at once can lose the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_whole:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._is_whole = not message.get("more_body", False)
        return message


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path} cannot be read ({type(error).__name__})", hint=KEY_HINT) from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"--api-key-file {path} is empty", expected="one key a line", hint=KEY_HINT)
    return found


def _hash(key: bytes) -> bytes:
    # A key is random and long, so that one round of SHA-256 is as good as a slow password hash.
    return hashlib.sha256(key).digest()


def _host_name(header: str) -> str:
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


def _explain_host(name: str) -> str:
    """Say why a request for another host is refused, and how containers and other machines are let in.

    NOTE: a page that rebinds its name can read this message: it tells nothing of the checkpoint.
    """
    return (
        f"Without a key this server answers requests for localhost and 127.0.0.1 only, and this one is for "
        f"{name[:MAX_HOST_SHOWN]!a}. Containers and other machines need a key. Make one: {MAKE_KEY} > keys.txt. "
        f"Serve with it: {SERVE_WITH_KEY}. Send it as Authorization: Bearer KEY."
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return unread.pop() if unread else await receive()

    return replayed


def _unfinished(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    return sent
