"""HTTP server of a review on 127.0.0.1: static page, state of the session, and verdicts.

Threats and defences:

- Foreign web pages in the browser: the server checks Host, Origin and content type.
- Local users of the machine: every path begins with a random token.
- Hostile answers of a model: the Content-Security-Policy allows only the page's own script, style and address, and the
  page inserts answers as text.
"""

import json
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any, cast

from puna.evaluation.review.session import VERDICTS, Session, Verdict
from puna.pipeline.errors import ConfigError, PunaError

HOST = "127.0.0.1"
HOST_NAMES = ("127.0.0.1", "localhost")
MAX_BODY_BYTES = 4096
IDLE_SECONDS = 30
PAGE_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A refused request, with the HTTP status.

    Example:
        >>> raise Refused(HTTPStatus.NOT_FOUND, "Not found.")
    """

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class ReviewServer(ThreadingHTTPServer):
    """Serves a session until the reviewer ends the review. A lock serializes changes of the session.

    Attributes:
        url: Address of the page, with the token.
        finished: Set once the reviewer has ended the review in the page.

    Example:
        >>> server = ReviewServer(session, summarize, port=0)
        >>> threading.Thread(target=server.serve_forever, daemon=True).start()
        >>> server.finished.wait()
    """

    daemon_threads = True

    def __init__(self, session: Session, summarize: Callable[[], dict[str, Any]], *, port: int):
        self.session, self.summarize = session, summarize
        self.token = secrets.token_urlsafe(24)
        self.lock, self.finished = threading.Lock(), threading.Event()
        page = files("puna.evaluation.review") / "page"
        self.page = {path: ((page / name).read_bytes(), kind) for path, (name, kind) in PAGE_FILES.items()}
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            reason = f"--port {port}: {error.strerror or error}"
            raise ConfigError(reason, expected="a free port, or 0 for any free port") from None
        self.url = f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def server_bind(self) -> None:
        """Bind without HTTPServer's host name look-up, to avoid use of the network."""
        TCPServer.server_bind(self)

    def act(self, action: str, request: dict[str, Any]) -> dict[str, Any]:
        """Perform the action of a key, and return the new state."""
        with self.lock:
            if self.finished.is_set():
                raise Refused(HTTPStatus.GONE, "This review has ended. Start it again in the terminal.")
            if action in ("judge", "skip") and not self.session.is_shown(request.get("number")):
                raise Refused(HTTPStatus.CONFLICT, "This pair is not open any more; another window may have judged it.")
            if action == "judge":
                if request.get("verdict") not in VERDICTS:
                    raise Refused(HTTPStatus.BAD_REQUEST, f"A verdict is one of {', '.join(VERDICTS)}.")
                self.session.judge(request["number"], cast(Verdict, request["verdict"]))
            elif action == "skip":
                self.session.skip(request["number"])
            elif action == "undo":
                self.session.undo()
            elif action not in ("state", "finish"):
                raise Refused(HTTPStatus.NOT_FOUND, "Not found.")
            state = self.session.state()
            if action == "finish" or state["pair"] is None:
                state["summary"] = self.summarize()
            return state | {"is_finished": action == "finish"}

    def end(self) -> None:
        """Stop serving after the current verdict."""
        with self.lock:
            self.finished.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore lost connections; report other errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Callable[[str], tuple[bytes, str]]) -> None:
        try:
            self._require_host()
            body, kind = method(self._path())
            self._send(HTTPStatus.OK, body, kind)
        except Refused as refused:
            self._refuse(refused.status, refused.message)
        except PunaError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _get(self, path: str) -> tuple[bytes, str]:
        if path not in self.server.page:
            raise Refused(HTTPStatus.NOT_FOUND, "Not found.")
        return self.server.page[path]

    def _post(self, path: str) -> tuple[bytes, str]:
        request = self._read_json()
        state = self.server.act(path, request)
        return _json(state), "application/json"

    def _require_host(self) -> None:
        """Refuse foreign host names (DNS rebinding) and requests from foreign web pages."""
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in HOST_NAMES and host not in HOST_NAMES:
            raise Refused(HTTPStatus.FORBIDDEN, "This Host header does not name this server.")
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise Refused(HTTPStatus.FORBIDDEN, "Another page's requests are refused.")

    def _path(self) -> str:
        """Return the path behind the token."""
        before, token, rest = [*self.path.split("/", 2), "", ""][:3]
        is_ours = secrets.compare_digest(token.encode(), self.server.token.encode())
        if before or not is_ours or self.path.count("/") < 2:
            raise Refused(HTTPStatus.NOT_FOUND, "Not found. The address with its token stands in the terminal.")
        return rest

    def _read_json(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Only application/json is read.")
        if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {MAX_BODY_BYTES} bytes.")
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "The body is no JSON object.")
        return request

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        # The body may be unread: the connection cannot serve another request.
        self.close_connection = True
        self._send(status, _json({"error": message}), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response_only(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if status == HTTPStatus.OK and self.command == "POST" and self._path() == "finish":
            self.server.finished.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Print no request lines: the terminal belongs to the reviewer, and request lines contain the token."""


def _json(value: dict[str, Any]) -> bytes:
    # ASCII: a lone surrogate in an answer has an escape, and no UTF-8.
    return json.dumps(value).encode()
