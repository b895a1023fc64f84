"""/openapi.json: every route and status is in it, and what schemathesis makes of it is answered as it says."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
from openapi_check import problems, validator
from test_requests import SENT_BACK, WITHOUT_EFFECT
from test_serve import KEY, SENTENCES, TOOL, save_tiny, serving

from puna.serving.app import ROUTES
from puna.serving.middleware.rules import make_rules
from puna.serving.openapi.document import OPERATIONS, openapi_document
from puna.serving.serve import open_served

SERVE = Path(__file__).parents[2] / "src" / "puna" / "serving"
# Answered to other methods than an operation's own.
NO_OPERATION = {405}
DOCUMENT = openapi_document(is_strict=False)


def statuses_in_code() -> set[int]:
    """Collect the statuses of all refusals in the server's source."""
    calls = [
        node
        for path in SERVE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "HttpError"
    ]
    parts = [part for call in calls if call.args for part in ast.walk(call.args[0])]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, int)}


def test_every_route_and_every_status_is_described():
    described = {(method, path) for method, path in OPERATIONS}
    assert described == {(method, path.replace(":path", "")) for method, path, _ in ROUTES}
    told = {
        int(status) for path in DOCUMENT["paths"].values() for each in path.values() for status in each["responses"]
    }
    assert statuses_in_code() - NO_OPERATION <= told and 422 not in told
    text = json.dumps(DOCUMENT)
    assert "HTTPValidationError" not in text and '"schema": {}' not in text


def test_the_schemas_are_valid_and_every_reference_leads_somewhere():
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        list(validator(name).iter_errors({}))


@pytest.mark.parametrize("name", SENT_BACK)
def test_the_schema_admits_what_clients_send_back(name):
    body = {"model": "tiny", "messages": SENT_BACK[name][0], "tools": [TOOL], **WITHOUT_EFFECT, "top_k": -1, "stop": ""}
    assert not list(validator("ChatRequest").iter_errors(body))


def test_strict_fields_close_the_schema_of_requests():
    closed = openapi_document(is_strict=True)["components"]["schemas"]["ChatRequest"]
    assert closed["additionalProperties"] is False and "-1" not in json.dumps(closed["properties"]["top_k"])


def test_an_answer_that_differs_from_the_document_is_found():
    """What holds the answers of all other tests of the server can fail."""
    card = {"id": "a", "object": "model", "created": 1, "owned_by": "puna"}
    kind = "application/json"

    def found(path: str, status: int, answer: Any, kind: str = kind) -> list[str]:
        return problems("GET", path, status, kind, json.dumps(answer).encode())

    assert not found("/v1/models/a", 200, card)
    assert found("/v1/models/a", 200, card | {"more": 1}) and found("/v1/models/a", 200, {"id": "a"})
    assert found("/v1/models/a", 200, card, "text/plain") and found("/v1/models", 418, {})
    error = {"error": {"message": "m", "type": "server_error", "param": None, "code": None}}
    assert not found("/v1/models/a", 404, error) and found("/v1/models", 404, error)
    assert found("/nothing", 404, {"detail": "m"})
    stream = b'data: {"object":"chat.completion.chunk"}\n\ndata: [DONE]\n\n'
    assert problems("POST", "/v1/chat/completions", 200, "text/event-stream", stream)


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    checkpoint = save_tiny(tmp_path_factory.mktemp("openapi") / "tiny", SENTENCES, num_merges=40, max_context=256)
    with serving(open_served(checkpoint), make_rules("127.0.0.1", None, {"PUNA_API_KEY": KEY})) as address:
        yield address


def test_the_document_is_served_behind_the_key(url):
    answer = httpx2.get(f"{url}/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
    assert httpx2.get(f"{url}/openapi.json").status_code == 401


REFUSAL_SECONDS = 1.0
FULL_COUNT = 200
TENTH = 20


@pytest.mark.parametrize(
    "examples", [pytest.param(TENTH, marks=pytest.mark.tenth), pytest.param(FULL_COUNT, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*place, "positive") for place in OPERATIONS]
    + [(*place, "negative") for place, operation in OPERATIONS.items() if operation.body],
)
def test_generated_requests_are_answered_as_the_document_says(url, method, path, mode, examples):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation.modes import GenerationMode
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_dict(DOCUMENT)
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
    ]
    strategy = schema[path][method].as_strategy(generation_mode=GenerationMode(mode))

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=strategy)
    def hold(case: Any) -> None:
        if mode == "positive" and isinstance(case.body, dict):
            # Otherwise nearly all are 404, and slow ones are not to the point.
            case.body |= {"model": "tiny", "max_tokens": 3, "n": 1}
            case.body.pop("max_completion_tokens", None)
        response = case.call(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        case.validate_response(response, checks=held)
        assert response.status_code < 400 or response.elapsed < REFUSAL_SECONDS

    hold()
