"""Files in page/ -> the routes of the chat page, with a strict Content-Security-Policy.

The page is static: the files hold no model name and no key. The page calls the API like any other client.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("page")
HTML, SCRIPT = "text/html; charset=utf-8", "text/javascript; charset=utf-8"
FILES = {
    "/": ("index.html", HTML),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page/chat.js": ("chat.js", SCRIPT),
    "/page/api.js": ("api.js", SCRIPT),
    "/page/message.js": ("message.js", SCRIPT),
}

# Model output is hostile: no inline code, no other origin, and (Trusted Types) no text that becomes HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """Read the page's files and return one route per file, for GET and HEAD.

    Example:
        >>> [route.path for route in page_routes()][:2]
        ['/', '/page/style.css']
    """
    return [_route(path, (FOLDER / name).read_bytes(), kind) for path, (name, kind) in FILES.items()]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def send_file(_: Request) -> Response:
        return Response(content, headers=HEADERS | {"content-type": kind})

    return Route(path, send_file, methods=["GET"], include_in_schema=False)
