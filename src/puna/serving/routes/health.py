"""GET /health: tell load balancers whether requests are answered."""

from starlette.responses import Response

from puna.serving.errors import json_response
from puna.serving.served_model import ServedModel


async def check_health(served: ServedModel) -> Response:
    """Report whether the engine answers requests; without a key, the response reveals nothing else."""
    if problem := served.engine.problem():
        raise problem
    return json_response({"status": "ok"})
