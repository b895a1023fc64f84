"""HTTP syntax beyond h11's checks: HttpError (400), or the normal form for routes (RFC 9112)."""

from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from puna.serving.errors import HttpError


class HttpSyntaxMiddleware:
    """Middleware for absolute targets (http://host/path), HEAD requests, and ambiguous body lengths.

    With both Content-Length and Transfer-Encoding, a proxy and the server could disagree about the start of the next
    request (request smuggling, RFC 9112, section 6.3).
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            message = "The request has both Content-Length and Transfer-Encoding; send one of them."
            raise HttpError(400, message, code="invalid_http", headers={"connection": "close"})
        if not scope["http_version"].startswith("1."):
            message = f"HTTP/{scope['http_version']} is not spoken here; use HTTP/1.1."
            raise HttpError(400, message, code="invalid_http", headers={"connection": "close"})
        changes = {"method": "GET"} if scope["method"] == "HEAD" else {}
        if scope["raw_path"].lower().startswith((b"http://", b"https://")):
            changes |= _origin_form(scope)
        await self.app({**scope, **changes} if changes else scope, receive, send)


def _origin_form(scope: Scope) -> Scope:
    """Return the path of an absolute target, and the target's host as the Host header (section 3.2.2)."""
    try:
        target = urlsplit(scope["raw_path"].decode("ascii"))
    except ValueError:
        raise HttpError(400, "The request's target is not an address.", code="invalid_http") from None
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    path = target.path or "/"
    return {
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "headers": [*headers, (b"host", target.netloc.encode("ascii"))],
    }
