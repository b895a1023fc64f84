"""Origins of --allow-origin -> Cross-Origin Resource Sharing (CORS) for web pages of exactly the listed origins.

Starlette's middleware implements the protocol and wraps the whole application: refused requests and unexpected errors
carry the CORS headers too. Without the headers, a browser shows the page "CORS error" instead of a 401.
"""

import re
from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from puna.pipeline.errors import ConfigError

# RFC 6454, section 6.2, in the spelling that browsers send: lower case, the scheme's own port left out.
_ORIGIN = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_OWN_PORT = re.compile(r"http://.*[^:\]]:80|https://.*[^:\]]:443")
FOR_MINUTES = 10


def parse_origins(origins: Iterable[str]) -> frozenset[str]:
    """Check the values of --allow-origin.

    Raises:
        ConfigError: For "*" and "null", since both admit any web page, and for spellings that no browser sends.

    Example:
        >>> parse_origins(["http://localhost:3000", "http://localhost:3000"])
        frozenset({'http://localhost:3000'})
    """
    checked = frozenset(origins)
    for origin in checked:
        if origin == "*":
            hint = "Repeat --allow-origin for each web page; programs other than browsers need none"
            raise ConfigError("--allow-origin *", expected="the origins by name", hint=hint)
        if origin == "null":
            hint = "Files and sandboxed frames of any website are 'null': serve the page over HTTP, and name its origin"
            raise ConfigError("--allow-origin null", expected="an origin such as http://localhost:3000", hint=hint)
        if not _ORIGIN.fullmatch(origin) or _OWN_PORT.fullmatch(origin):
            expected = "scheme://host or scheme://host:port as browsers send it"
            hint = "Lower case; no path, no slash at the end, no default port: https://shop.example"
            raise ConfigError(f"--allow-origin {origin}", expected=expected, hint=hint)
    return checked


def share_with(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """Let web pages of `origins` read responses; keys travel in the Authorization header, cookies never.

    Every request header is allowed: OpenAI's own client for browsers sends a dozen custom headers.

    Example:
        >>> share_with(app, frozenset()) is app
        True
        >>> type(share_with(app, frozenset({"https://shop.example"}))).__name__
        'CORSMiddleware'
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=("Retry-After", "WWW-Authenticate", "X-Puna-Warning"),
        max_age=FOR_MINUTES * 60,
    )
