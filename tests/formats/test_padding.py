"""Null padding of Arrow is removed alike from every source; a null with a meaning stays."""

import copy
from pathlib import Path
from typing import Any

import pytest

from puna.corpus.ingest.records import read_records
from puna.corpus.ingest.results import Accepted
from puna.data.dataset import Dataset
from puna.data.shards import write_jsonl
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.padding import tool_without_padding, without_padding
from puna.serving.requests.chat import ChatRequest


def tool(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": "book", "parameters": parameters}}


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": arguments}}
    return [{"role": "user", "content": "Book it."}, {"role": "assistant", "content": "", "tool_calls": [call]}]


def test_padding_of_a_tool_is_removed_and_the_nulls_of_its_schema_stay():
    meant = {
        "day": {"type": "string", "default": None},
        "seat": {"enum": ["window", None]},
        "rate": {"const": None},
        "default": {"type": "object", "properties": {"const": {"type": "string"}}},
        "any": {},
        "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    }
    padded = copy.deepcopy(meant)
    padded["day"] |= {"enum": None, "const": None}
    padded["default"]["properties"] |= {"const": {"type": "string", "enum": None}, "default": None}
    padded["list"]["items"]["properties"]["y"] = None
    padded["either"]["anyOf"][0] |= {"format": None}
    padded |= {"city": None, "zone": {"type": None, "description": None}}
    outer = tool(padded, required=None, additionalProperties=None, **{"$defs": None})
    outer["function"] |= {"strict": None, "description": None}
    assert tool_without_padding(outer) == tool(meant)
    assert tool_without_padding(tool(meant)) == tool(meant)
    assert tool_without_padding(outer["function"]) == tool(meant)["function"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"day": "Monday", "city": None}, {"day": "Monday"}),
        ({"day": None, "note": None}, {"note": None}),
        ({"place": {"row": 3, "seat": None, "hall": None}}, {"place": {"row": 3, "seat": None}}),
        ({"stops": [{"at": "Bern", "for": None}, None]}, {"stops": [{"at": "Bern"}, None]}),
        ('{"day": null}', '{"day": null}'),
        (None, ...),
    ],
)
def test_a_null_argument_stays_only_where_its_schema_admits_null(given: Any, meant: Any):
    place = {"type": "object", "properties": {"row": {"type": "integer"}, "seat": {"enum": ["a", None]}}}
    stops = {"type": "array", "items": {"type": "object", "properties": {"at": {"type": "string"}}}}
    note = {"type": ["string", "null"]}
    tools = [tool({"day": {"type": "string"}, "note": note, "place": place, "stops": stops})]
    row = without_padding({"messages": called(given), "tools": tools})
    function = row["messages"][1]["tool_calls"][0]["function"]
    assert function.get("arguments", ...) == meant


def test_an_argument_behind_a_reference_is_judged_by_the_definition():
    guest = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/None"}]}},
    }
    definitions = {"Guest": guest, "None": {"type": "null"}, "Loop": {"$ref": "#/$defs/Loop"}}
    properties = {"guest": {"anyOf": [{"$ref": "#/$defs/Guest"}, {"type": "null"}]}, "loop": {"$ref": "#/$defs/Loop"}}
    tools = [tool(properties, **{"$defs": definitions})]
    given = {"guest": {"name": None, "age": None, "city": None}, "loop": None}
    row = without_padding({"messages": called(given), "tools": tools})
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"guest": {"age": None}}


@pytest.mark.parametrize("reference", ["#", "#/properties/a~1b", "#/properties/caf%C3%A9", "#/anyOf/0"])
def test_a_null_behind_a_reference_stays_however_the_reference_is_spelled(reference: str):
    node = {"type": "object", "properties": {"note": {"type": ["string", "null"]}}}
    properties = {"note": {"type": ["string", "null"]}, "a/b": node, "café": node, "next": {"$ref": reference}}
    given = {"next": {"note": None, "city": None}}
    row = without_padding({"messages": called(given), "tools": [tool(properties, anyOf=[node])]})
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"next": {"note": None}}


def test_fields_of_messages_and_parts_lose_their_nulls_and_malformed_parts_stay():
    part = {"type": "text", "text": "Hi", "image_url": None}
    row = {"messages": [{"role": "user", "content": [part], "name": None}, 3], "tools": [None, "x"], "id": None}
    assert without_padding(row) == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, 3],
        "tools": [None, "x"],
        "id": None,
    }


def test_an_arrow_table_gives_the_same_rows_as_json(tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    find, look = "find_order", "find_place"
    rows = [
        {"messages": called_by(find, {"number": "4711"}), "tools": [{"name": find, "parameters": schema("number")}]},
        {"messages": called_by(look, {"city": "Bern"}), "tools": [{"name": look, "parameters": schema("city")}]},
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "conversations.parquet")
    write_jsonl(tmp_path / "conversations.jsonl", table.to_pylist())
    assert table.to_pylist() != rows
    read = [list(Dataset([tmp_path / f"conversations.{suffix}"])) for suffix in ("parquet", "jsonl")]
    meant = [Conversation.from_json(row) for row in rows]
    assert read[0] == meant and [row.tools for row in read[1]] == [row.tools for row in meant]


def test_a_request_and_a_row_of_json_give_the_same_tools_and_messages(tmp_path: Path):
    padded = tool({"day": {"type": "string", "enum": None, "default": None}, "city": None}, required=None)
    messages = [{**each, "name": None} for each in called('{"day": "Monday", "city": null}')]
    results = [{"role": "tool", "tool_call_id": "1", "content": "Booked."}, {"role": "assistant", "content": "Done."}]
    row = {"messages": [*messages, *results], "tools": [padded]}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    (read,) = read_records(tmp_path / "rows.jsonl", "rows.jsonl")
    assert isinstance(read, Accepted) and isinstance(read.row, Conversation)
    request = ChatRequest.model_validate(
        {"model": "m", **row, "messages": [*row["messages"], {"role": "user", "content": "Hi"}]}
    )
    asked = Conversation.from_json(request.conversation())
    assert (asked.tools, asked.messages[:-1]) == (read.row.tools, read.row.messages)
    assert read.row.tools == (tool({"day": {"type": "string", "default": None}}),)


def schema(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string", "default": None}}, "required": [name]}


def called_by(name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"function": {"name": name, "arguments": arguments}}
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
