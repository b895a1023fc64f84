"""A served checkpoint and the rules -> the web application. The routes are the table at its head.

FastAPI's pages of documentation load scripts from elsewhere, so only /openapi.json is there, behind the key, and
written by openapi/document.py. The chat page (browser/page.py) is static and open.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from starlette.responses import Response

from puna import __version__
from puna.serving.browser.page import page_routes
from puna.serving.errors import Refusal, add_error_handlers, json_response
from puna.serving.generation.metrics import CONTENT_TYPE
from puna.serving.middleware.rules import Rules, RulesMiddleware
from puna.serving.middleware.warnings import WarningsMiddleware
from puna.serving.openapi.document import openapi_document
from puna.serving.routes.chat_completions import create_chat_completion
from puna.serving.routes.completions import create_completion
from puna.serving.served_model import Served


async def check_health(served: Served) -> Response:
    """Say whether requests are being answered, and nothing else: this route is open."""
    if problem := served.engine.problem():
        raise problem
    return json_response({"status": "ok"})


async def show_metrics(served: Served, request: Request) -> Response:
    """Return the metrics for Prometheus; only for keys of all models, since other keys are customers'."""
    if request.state.tenant.models is not None:
        raise Refusal(403, "Metrics are for keys that are for all models.", code="key_not_allowed")
    engine = served.engine
    return Response(engine.metrics.text(engine.admission.held, is_up=engine.is_alive), media_type=CONTENT_TYPE)


async def list_models(served: Served, request: Request) -> Response:
    """List the served model and the adapters."""
    names = served.names(request.state.tenant)
    return json_response({"object": "list", "data": [_model(served, name) for name in names]})


async def retrieve_model(served: Served, model: str, request: Request) -> Response:
    """Describe the served model, or an adapter."""
    served.adapter_of(model, request.state.tenant)
    return json_response(_model(served, model))


async def describe_api(served: Served) -> Response:
    """Describe this API as OpenAPI does."""
    return json_response(openapi_document(is_strict=served.strict_fields))


ROUTES = (
    ("GET", "/health", check_health),
    ("GET", "/metrics", show_metrics),
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
            await served.engine.stop()

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
    app.add_middleware(WarningsMiddleware)
    app.add_middleware(RulesMiddleware, rules=rules)
    add_error_handlers(app)
    return app


def _model(served: Served, name: str) -> dict[str, str | int]:
    model: dict[str, str | int] = {"id": name, "object": "model", "created": served.created, "owned_by": "puna"}
    if name != served.name:
        model["parent"] = served.name
    return model | ({"notice": served.notice} if served.notice else {})
