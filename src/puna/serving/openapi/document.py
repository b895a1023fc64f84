"""The table of operations -> the OpenAPI document, from the models of requests and responses.

OpenAPI 3.1.1. The schema of an event stream describes one event, an object with `data`, as schemathesis expects.
"""

from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from puna import __version__
from puna.serving.errors import ERROR_TYPES
from puna.serving.openapi import responses
from puna.serving.requests.body import Body
from puna.serving.requests.chat import ChatRequest
from puna.serving.requests.completion import CompletionRequest

VERSION = "3.1.1"
PLACE_OF_MODELS = "#/components/schemas/{model}"
# Statuses of the middlewares, possible on every route.
MIDDLEWARE_ERRORS = (400, 401, 403, 408, 413, 431, 500, 503)
MEANINGS = {
    400: "The request is invalid; `param` names the field.",
    401: "A valid key is needed.",
    403: "The Host header is not allowed, or the key does not permit the request.",
    404: "The model does not exist, or the key does not include the model.",
    408: "The request took too long to arrive.",
    413: "The body is too large.",
    431: "The request's headers are too long.",
    500: "The server failed on this request.",
    503: "The server is overloaded, starting or stopping; retry after the seconds in Retry-After.",
}
HEADERS = {
    401: ("WWW-Authenticate", "Authentication scheme of the key: Bearer."),
    503: ("Retry-After", "Seconds to wait before the next attempt."),
}


class Operation(NamedTuple):
    """Description of a route; without an answer model the response is plain text."""

    summary: str
    answer: type[BaseModel] | None
    errors: tuple[int, ...] = MIDDLEWARE_ERRORS
    body: type[Body] | None = None
    event: type[BaseModel] | None = None


WITH_MODEL = (*MIDDLEWARE_ERRORS, 404)
OPERATIONS = {
    ("GET", "/health"): Operation("Report whether the server answers requests; needs no key", responses.Health),
    ("GET", "/metrics"): Operation("Return the server's metrics in Prometheus format", None),
    ("GET", "/v1/models"): Operation("List the model and its adapters", responses.ModelList),
    ("GET", "/v1/models/{model}"): Operation("Describe a model", responses.Model, WITH_MODEL),
    ("POST", "/v1/chat/completions"): Operation(
        "Generate the assistant's next message", responses.ChatCompletion, WITH_MODEL, ChatRequest, responses.ChatChunk
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue prompts", responses.Completion, WITH_MODEL, CompletionRequest, responses.CompletionChunk
    ),
    ("GET", "/openapi.json"): Operation("Describe the API", responses.OpenApi),
}


@lru_cache(maxsize=2)
def openapi_document(*, is_strict: bool) -> dict[str, Any]:
    """Describe all operations; without `is_strict`, requests may have undeclared fields.

    Example:
        >>> sorted(openapi_document(is_strict=False)["paths"])[:2]
        ['/health', '/metrics']
    """
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _describe(path, operation)
    schemas = _schemas(is_strict=is_strict)
    key = {"type": "http", "scheme": "bearer", "description": "A line of the server's --api-key-file, or PUNA_API_KEY."}
    return {
        "openapi": VERSION,
        "info": {"title": "Puna", "version": __version__},
        # Keys are optional: a server may run without keys.
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": key}},
    }


def _describe(path: str, operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    if operation.answer:
        content = {"application/json": {"schema": _reference(operation.answer)}}
    if operation.event:
        content["text/event-stream"] = {"schema": _event(operation.event)}
    success: dict[str, Any] = {"description": "The answer", "content": content}
    described: dict[str, Any] = {"summary": operation.summary, "responses": {"200": success}}
    if operation.body:
        schema = {"schema": _reference(operation.body)}
        described["requestBody"] = {"required": True, "content": {"application/json": schema}}
        warning = {"description": "Fields of the request that have no effect.", "schema": {"type": "string"}}
        success["headers"] = {"X-Puna-Warning": warning}
    if path.endswith("{model}"):
        parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        described["parameters"] = [parameter]
    for status in sorted(operation.errors):
        error: dict[str, Any] = {
            "description": MEANINGS[status],
            "content": {"application/json": {"schema": _reference(responses.Error)}},
        }
        if status in HEADERS:
            name, meaning = HEADERS[status]
            error["headers"] = {name: {"description": meaning, "schema": {"type": "string"}}}
        described["responses"][str(status)] = error
    return described


def _event(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a server-sent event: JSON of `model`, JSON of an error, or [DONE]."""
    either = {"anyOf": [_reference(model), _reference(responses.Error)]}
    payload = {"type": "string", "contentMediaType": "application/json", "contentSchema": either}
    data = {"anyOf": [{"const": "[DONE]"}, payload]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _schemas(*, is_strict: bool) -> dict[str, Any]:
    bodies = [operation.body for operation in OPERATIONS.values() if operation.body]
    sent = [model for operation in OPERATIONS.values() for model in (operation.answer, operation.event) if model]
    models = dict.fromkeys([*bodies, *sent, responses.Error])
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=PLACE_OF_MODELS)
    schemas = definitions["$defs"]
    for body in () if is_strict else bodies:
        schema = schemas[body.__name__]
        schema["additionalProperties"] = True
        for name, (value, _, meaning) in body.SPELLINGS.items():
            branch = {"const": value, "description": f"Other programs' spelling of {meaning}"}
            schema["properties"][name]["anyOf"].append(branch)
    kinds = sorted({"invalid_request_error", *ERROR_TYPES.values()})
    schemas["ErrorDetail"]["properties"]["type"] = {"type": "string", "enum": kinds}
    return schemas


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": PLACE_OF_MODELS.format(model=model.__name__)}
