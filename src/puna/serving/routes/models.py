"""GET /v1/models and /v1/models/{model}: the checkpoint and the adapters under the names for requests."""

from fastapi import Request
from starlette.responses import Response

from puna.serving.errors import json_response
from puna.serving.served_model import ServedModel


async def list_models(served: ServedModel, request: Request) -> Response:
    """List the served model and the adapters."""
    names = served.names(request.state.tenant)
    return json_response({"object": "list", "data": [_model(served, name) for name in names]})


async def retrieve_model(served: ServedModel, model: str, request: Request) -> Response:
    """Describe the served model, or an adapter."""
    served.resolve_adapter(model, request.state.tenant)
    return json_response(_model(served, model))


def _model(served: ServedModel, name: str) -> dict[str, str | int]:
    model: dict[str, str | int] = {"id": name, "object": "model", "created": served.created, "owned_by": "puna"}
    if name != served.name:
        model["parent"] = served.name
    return model | ({"notice": served.notice} if served.notice else {})
