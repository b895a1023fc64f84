"""Authorization header -> the tenant of the key; HttpError (401) for a missing or unknown key.

Every route needs a key, except OPEN_PATHS: /health and the files of the chat page.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from puna.pipeline.errors import ConfigError
from puna.serving.browser.page import FILES
from puna.serving.errors import HttpError

OPEN_PATHS = frozenset({"/health", *FILES})
KEY_VARIABLE = "PUNA_API_KEY"
MIN_KEY_LEN = 32
MAKE_KEY = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
KEY_HINT = f"{MAKE_KEY} makes a good one"
SERVE_WITH_KEY = "puna serve CHECKPOINT --host 0.0.0.0 --api-key-file keys.txt"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Owner of a key, and the models open to the key (None: all). Tenants share no cached data.

    Example:
        >>> list(read_tenants(None, {"PUNA_API_KEY": 32 * "k"}).values())
        [Tenant(name='0', models=None)]
    """

    name: str = ""
    models: frozenset[str] | None = None


class KeysMiddleware:
    """Middleware: stores the tenant in the request's state; without `tenants`, requests need no key."""

    def __init__(self, app: ASGIApp, tenants: Mapping[bytes, Tenant]):
        self.app, self.tenants = app, tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["path"] in OPEN_PATHS or not self.tenants
        tenant = Tenant() if is_open else self._find_tenant(Headers(scope=scope))
        if tenant is None:
            challenge = {"www-authenticate": "Bearer"}
            message = (
                "A valid key is needed: Authorization: Bearer KEY. "
                f"Keys are the lines of the server's --api-key-file, and its variable {KEY_VARIABLE}."
            )
            raise HttpError(401, message, code="invalid_api_key", headers=challenge)
        scope.setdefault("state", {})["tenant"] = tenant
        await self.app(scope, receive, send)

    def _find_tenant(self, headers: Headers) -> Tenant | None:
        """Return the tenant of the key in the header; None for an unknown key.

        Compares with all keys: the time must not reveal a match.
        """
        values = headers.getlist("authorization")
        scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        hashed = _hash(key.strip().encode("latin-1"))
        matches = [tenant for known, tenant in self.tenants.items() if hmac.compare_digest(hashed, known)]
        return matches[0] if scheme.lower() == "bearer" and matches else None


def read_tenants(key_file: Path | None, environment: Mapping[str, str]) -> dict[bytes, Tenant]:
    """Read the keys: the lines of `key_file`, and PUNA_API_KEY; return tenants by hash of the key.

    Raises ConfigError for a weak or unreadable key.
    """
    lines = [(f"the variable {KEY_VARIABLE}", [environment[KEY_VARIABLE]])] if KEY_VARIABLE in environment else []
    lines += [(f"the key in {key_file}", line.split()) for line in _read_lines(key_file)] if key_file else []
    tenants: dict[bytes, Tenant] = {}
    for number, (origin, (key, *models)) in enumerate(lines):
        if len(key) < MIN_KEY_LEN or not (key.isascii() and key.isprintable() and " " not in key):
            expected = f"at least {MIN_KEY_LEN} printable ASCII characters without spaces"
            raise ConfigError(f"{origin} has {len(key)} characters", expected=expected, hint=KEY_HINT)
        tenants[_hash(key.encode())] = Tenant(str(number), frozenset(models) if models else None)
    return tenants


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path} cannot be read ({type(error).__name__})", hint=KEY_HINT) from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"--api-key-file {path} is empty", expected="one key a line", hint=KEY_HINT)
    return keys


def _hash(key: bytes) -> bytes:
    # Keys are long and random: a single round of SHA-256 suffices, unlike for passwords.
    return hashlib.sha256(key).digest()
