"""A served model and rules -> the web application, with the table of routes.

FastAPI's documentation pages load scripts from other sites and are off; openapi/document.py writes /openapi.json.
The chat page (browser/page.py) is static and needs no key.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from puna import __version__
from puna.serving.browser.page import page_routes
from puna.serving.errors import add_error_handlers
from puna.serving.middleware.rules import Rules, RulesMiddleware
from puna.serving.middleware.warnings import WarningsMiddleware
from puna.serving.routes.chat_completions import create_chat_completion
from puna.serving.routes.completions import create_completion
from puna.serving.routes.health import check_health
from puna.serving.routes.metrics import show_metrics
from puna.serving.routes.models import list_models, retrieve_model
from puna.serving.routes.openapi import describe_api
from puna.serving.served_model import ServedModel

ROUTES = (
    ("GET", "/health", check_health),
    ("GET", "/metrics", show_metrics),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", retrieve_model),
    ("POST", "/v1/chat/completions", create_chat_completion),
    ("POST", "/v1/completions", create_completion),
    ("GET", "/openapi.json", describe_api),
)


def build_app(served: ServedModel, rules: Rules) -> FastAPI:
    """Build the application; startup and shutdown of the application start and stop the engine."""

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
