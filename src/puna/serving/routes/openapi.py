"""GET /openapi.json: the description of the API."""

from starlette.responses import Response

from puna.serving.errors import json_response
from puna.serving.openapi.document import openapi_document
from puna.serving.served_model import ServedModel


async def describe_api(served: ServedModel) -> Response:
    """OpenAPI description of the HTTP API."""
    return json_response(openapi_document(is_strict=served.strict_fields))
