"""GET /metrics: the server's counters for Prometheus."""

from fastapi import Request
from starlette.responses import Response

from puna.serving.errors import HttpError
from puna.serving.generation.metrics import CONTENT_TYPE
from puna.serving.served_model import ServedModel


async def show_metrics(served: ServedModel, request: Request) -> Response:
    """Return the metrics for Prometheus; keys with a list of models belong to customers and get a 403."""
    if request.state.tenant.models is not None:
        raise HttpError(403, "Metrics are for keys that are for all models.", code="key_not_allowed")
    engine = served.engine
    return Response(engine.metrics.text(engine.admission.held, is_up=engine.is_alive), media_type=CONTENT_TYPE)
