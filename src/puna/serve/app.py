"""A served checkpoint and the gate's rules -> the web application and its server. The routes are the table at its head.

FastAPI's pages of documentation load scripts from elsewhere, so only /openapi.json is there, behind the key, and
written by openapi/document.py. The chat page (browser/page.py) is static and open.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h11
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from puna import __version__
from puna.serve.browser.page import page_routes
from puna.serve.chat_completions import create_chat_completion
from puna.serve.completions import create_completion
from puna.serve.generation.engine_thread import EngineThread
from puna.serve.middleware.gate import Gate, Rules
from puna.serve.middleware.warnings import Warnings
from puna.serve.openapi.document import openapi_document
from puna.serve.refusals import Refusal, add_error_handlers, encode_json, json_response, overloaded
from puna.serve.served import Served

LAST_SECONDS = 2.0
ANY_ADDRESS = ("0.0.0.0", "::", "")

logger = logging.getLogger("uvicorn.error")  # where uvicorn says that it runs


async def check_health(served: Served) -> Response:
    """Say whether requests are being answered, and nothing else: this route is open."""
    if not served.engine.is_alive:
        raise overloaded("The engine is not running.")
    return json_response({"status": "ok"})


async def list_models(served: Served, request: Request) -> Response:
    """List the model that is served and its adapters."""
    names = served.names(request.state.tenant)
    return json_response({"object": "list", "data": [_model(served, name) for name in names]})


async def retrieve_model(served: Served, model: str, request: Request) -> Response:
    """Describe the model that is served, or one of its adapters."""
    served.adapter_of(model, request.state.tenant)
    return json_response(_model(served, model))


async def describe_api(served: Served) -> Response:
    """Describe this API as OpenAPI does."""
    return json_response(openapi_document(is_strict=served.strict_fields))


ROUTES = (
    ("GET", "/health", check_health),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", retrieve_model),
    ("POST", "/v1/chat/completions", create_chat_completion),
    ("POST", "/v1/completions", create_completion),
    ("GET", "/openapi.json", describe_api),
)


def build_app(served: Served, rules: Rules) -> FastAPI:
    """Build the application; its lifespan starts and stops the engine's thread."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(served.engine.stop)

    app = FastAPI(
        title="Puna",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for method, path, handler in ROUTES:
        app.add_api_route(path, partial(handler, served), methods=[method], name=handler.__name__)
    app.router.routes.extend(page_routes())
    app.add_middleware(Warnings)
    app.add_middleware(Gate, rules=rules)
    add_error_handlers(app)
    return app


def _model(served: Served, name: str) -> dict[str, str | int]:
    model: dict[str, str | int] = {"id": name, "object": "model", "created": served.created, "owned_by": "puna"}
    if name != served.name:
        model["parent"] = served.name
    return model | ({"notice": served.notice} if served.notice else {})


class Server(uvicorn.Server):
    """Waits for running requests when told to stop; shortly before it gives up, ends them with an error."""

    def __init__(self, config: uvicorn.Config, engine: EngineThread):
        super().__init__(config)
        self._engine = engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where the chat page is."""
        await super().startup(sockets)
        for server in self.servers[:1]:
            port = server.sockets[0].getsockname()[1]
            host = "localhost" if self.config.host in ANY_ADDRESS else self.config.host
            logger.info("The chat page is at http://%s:%d/", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        patience = max(0.0, (self.config.timeout_graceful_shutdown or 0) - LAST_SECONDS)
        ending = asyncio.get_running_loop().call_later(patience, self._engine.refuse_and_end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


class JsonProtocol(H11Protocol):
    """HTTP/1.1 whose answer to bytes that are no HTTP is JSON."""

    def send_400_response(self, msg: str) -> None:
        body = encode_json(Refusal(400, msg, code="invalid_http").body())
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
