"""`response_format`: text, JSON, a JSON schema, or a grammar."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from puna.inference.engine.grammar.grammar import MAX_GRAMMAR_CHARS
from puna.serving.requests.checks import OPEN


class TextFormat(BaseModel):
    model_config = OPEN

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object, or an object of `schema` (llama.cpp's spelling)."""

    model_config = OPEN

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class JsonSchema(BaseModel):
    """A JSON schema; without `strict`, keywords beyond the grammar compiler are ignored with a warning."""

    model_config = OPEN

    name: Annotated[str, Field(max_length=256)] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(BaseModel):
    model_config = OPEN

    type: Literal["json_schema"]
    json_schema: JsonSchema


class GrammarFormat(BaseModel):
    """A Lark grammar or regular expression: Puna's extension, with OpenAI's field names of custom tools."""

    model_config = OPEN

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat
