"""`tools` and `tool_choice` of a chat request -> checked values."""

from typing import Any, Literal

from pydantic import BaseModel

from puna.serving.requests.checks import OPEN, Name


class Function(BaseModel):
    model_config = OPEN

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = OPEN

    type: Literal["function"]
    function: Function


def keep_as_given(value: Any, check: Any) -> Any:
    """Validate a tool and return the JSON unchanged: the prompt keeps the order of a schema's keys."""
    check(value)
    return value


def shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool for the prompt: without `strict`, and without fields of other programs."""
    shown = ("name", "description", "parameters")
    function = {name: value for name, value in tool["function"].items() if name in shown}
    return {name: function if name == "function" else tool[name] for name in tool if name in Tool.model_fields}


class NamedFunction(BaseModel):
    model_config = OPEN

    name: Name


class NamedChoice(BaseModel):
    model_config = OPEN

    type: Literal["function"]
    function: NamedFunction
