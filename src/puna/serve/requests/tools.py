"""`tools` and `tool_choice` of a chat request -> checked values."""

from typing import Any, Literal

from pydantic import BaseModel

from puna.serve.requests.checks import STRICT, Name


class Function(BaseModel):
    model_config = STRICT

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = STRICT

    type: Literal["function"]
    function: Function


def keep_as_given(value: Any, check: Any) -> Any:
    # The order of a schema's keys is part of what the model reads, and a validated Tool would lose it.
    check(value)
    return value


class NamedFunction(BaseModel):
    model_config = STRICT

    name: Name


class NamedChoice(BaseModel):
    model_config = STRICT

    type: Literal["function"]
    function: NamedFunction
