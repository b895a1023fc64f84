"""Schemas of clients: what a strict grammar admits is valid, what is left out of another schema is told."""

import datetime
import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_call_grammar import compiler, tokenizer

from puna.inference.engine.grammar.grammar import json_grammar
from puna.inference.engine.grammar.schema.dialect import read_dialect
from puna.inference.engine.grammar.schema.fit import FittedSchema
from puna.inference.engine.grammar.schema.formats import EXACT_PATTERNS
from puna.pipeline.errors import RequestError

NAME = {"type": "string", "maxLength": 4}


def fields(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def fit(schema: dict[str, Any], *, is_strict: bool) -> FittedSchema:
    return compiler().fit(schema, is_strict=is_strict, place="tool book")


def said(schema: dict[str, Any], seed: int) -> Any:
    """Return a value that a random writer writes in a schema's grammar; assume that the writer comes to an end."""
    rng, matcher, ids = random.Random(seed), compiler().compile(json_grammar(schema)).matcher(), list[int]()
    while len(ids) < 200:
        admitted = np.flatnonzero(matcher.admitted(tokenizer().vocab_size) == 0)
        stops = [token for token in admitted if token in tokenizer().stop_ids]
        token = int(stops[0] if stops else rng.choice(admitted))
        matcher.accept(token)
        if stops:
            return json.loads(tokenizer().decode(ids))
        ids.append(token)
    return assume(False)


# (schema of the field "to", the keyword that no grammar can hold)
UNHELD: dict[str, tuple[dict[str, Any], str]] = {
    "look-ahead": ({"type": "string", "pattern": "^(?!no)[a-z]+$"}, "pattern"),
    "look-behind": ({"type": "string", "pattern": "(?<=a)b"}, "pattern"),
    "back-reference": ({"type": "string", "pattern": r"^(a|b)\1$"}, "pattern"),
    "named back-reference": ({"type": "string", "pattern": r"^(?<q>a)\k<q>$"}, "pattern"),
    "word boundary": ({"type": "string", "pattern": r"\bcat\b"}, "pattern"),
    "broken pattern": ({"type": "string", "pattern": "(a"}, "pattern"),
    "property names by look-ahead": ({"type": "object", "patternProperties": {"^(?!x)": NAME}}, "patternProperties"),
    "unknown format": ({"type": "string", "format": "telephone"}, "format"),
    "not": ({"type": "string", "not": {"enum": ["a"]}}, "not"),
    "if": ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
    "dependentSchemas": ({"dependentSchemas": {"a": {"required": ["b"]}}}, "dependentSchemas"),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "dependencies": ({"dependencies": {"a": ["b"]}}, "dependencies"),
    "contains": ({"type": "array", "contains": {"const": 1}}, "contains"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    "minProperties": ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2}, "minProperties"),
    "$dynamicRef": ({"$dynamicRef": "#node"}, "$dynamicRef"),
    "a reference to nothing": ({"$ref": "#/components/schemas/Address"}, "$ref"),
    "a reference elsewhere": ({"$ref": "https://example.com/address.json"}, "$ref"),
    "no value": ({"enum": []}, "enum"),
    "an unknown type": ({"type": "file"}, "type"),
    "a range beyond doubles": ({"type": "integer", "minimum": -(2**63), "maximum": 10}, "minimum"),
    "choices that overlap": ({"oneOf": [{"maxLength": 3}, {"minLength": 2}]}, "oneOf"),
}


@pytest.mark.parametrize("name", UNHELD)
def test_a_keyword_that_no_grammar_holds_is_left_out_and_named_or_refused_where_strict(name):
    schema, keyword = UNHELD[name]
    whole = fields(number=NAME, to=schema)
    fitted = fit(whole, is_strict=False)
    assert any(note.startswith(f'tool book, field to: "{keyword}" is ') for note in fitted.notes)
    assert compiler().compile(json_grammar(fitted.schema))
    with pytest.raises(RequestError) as caught:
        fit(whole, is_strict=True)
    assert str(caught.value).startswith(f'tool book, field to: "{keyword}", which a strict schema cannot have')


def test_only_the_keyword_that_cannot_be_held_is_left_out():
    mail = {"type": "string", "pattern": "^(?!a)", "maxLength": 9, "format": "email"}
    rest = {"type": "array", "items": fields(to=mail, copies={"type": "integer", "minimum": 0, "maximum": 3})}
    whole = fields(letters=rest)
    fitted = fit(whole, is_strict=False)
    assert len(fitted.notes) == 1 and "field letters[].to:" in fitted.notes[0]
    held = json.loads(json.dumps(whole))
    del held["properties"]["letters"]["items"]["properties"]["to"]["pattern"]
    assert fitted.schema == held
    assert whole["properties"]["letters"]["items"]["properties"]["to"] == mail  # The client's own stays as it is.


def test_what_lies_within_a_keyword_that_is_left_out_is_not_noted():
    notes = fit(fields(to={"type": "string", "not": {"pattern": "^(?!a)"}}), is_strict=False).notes
    assert notes == ('tool book, field to: "not" is left out (not supported)',)


def test_notes_quote_no_value_of_a_schema():
    secret = {"type": "string", "pattern": "^(?!sesame)", "format": "sesame", "enum": []}
    assert "sesame" not in "".join(fit(fields(to=secret), is_strict=False).notes)


def test_properties_that_a_lost_pattern_allows_are_not_forbidden():
    schema = {"type": "object", "patternProperties": {"^(?!x)": NAME}, "additionalProperties": False}
    assert fit(schema, is_strict=False).schema == {"type": "object"}


def test_an_intersection_of_closed_objects_has_the_properties_of_all_branches():
    schema = {"allOf": [fields(a=NAME), fields(b={"type": "integer"})]}
    fitted = fit(schema, is_strict=False)
    assert fitted.notes == (
        'tool book: "additionalProperties" within "allOf" is left out '
        "(the branches forbid the properties of one another)",
    )
    assert {"a", "b"} <= said(fitted.schema, 0).keys()
    with pytest.raises(RequestError, match="no value satisfies it"):
        fit(schema, is_strict=True)


def test_a_required_name_without_a_property_does_not_lose_the_others():
    schema = fields(to=NAME) | {"required": ["to", "by"]}
    fitted = fit(schema, is_strict=False)
    assert fitted.schema == fields(to=NAME) and 'tool book: "required"' in fitted.notes[0]


@pytest.mark.parametrize(
    "schema", [{"minLength": "long"}, {"pattern": 5}, {"properties": {"a": "string"}}, {"enum": "a"}, {"minimum": [1]}]
)
def test_a_keyword_of_the_wrong_kind_is_refused_by_name_strict_or_not(schema):
    for is_strict in (False, True):
        with pytest.raises(RequestError) as caught:
            fit(fields(to=schema), is_strict=is_strict)
        assert str(caught.value).startswith("tool book, field to") and "; expected " in str(caught.value)


@pytest.mark.parametrize("is_strict", [False, True])
def test_what_no_grammar_holds_as_a_whole_is_refused_by_tool(is_strict):
    for schema in (
        fields(to={"type": "string", "description": "x" * 200_000}),
        fields(**{f"field {at}": {} for at in range(5000)}),
        {"allOf": [fields(a={"const": 1}), fields(a={"const": 2})]},
    ):
        with pytest.raises(RequestError, match=r"^tool book: "):
            fit(schema, is_strict=is_strict)


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gemini's types": (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True, "minLength": "2"}}},
        {"type": "object", "properties": {"a": {"type": ["string", "null"], "minLength": 2}}},
    ),
    "types of Python": (
        {"type": "dict", "properties": {"a": {"type": "float"}}},
        {"type": "object", "properties": {"a": {"type": "number"}}},
    ),
    "any type": ({"type": "any"}, {}),
    "no type": ({"type": ""}, {}),
    "nullable enum": (
        {"type": "string", "enum": ["a"], "nullable": True},
        {"type": ["string", "null"], "enum": ["a", None]},
    ),
    "nullable reference": (
        {"$ref": "#/$defs/a", "nullable": True, "description": "x"},
        {"description": "x", "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
    ),
    "not nullable": ({"type": "string", "nullable": False}, {"type": "string"}),
    "draft 4": (
        {"minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
        {"exclusiveMinimum": 0, "maximum": 9},
    ),
    "a tuple": (
        {"items": [{"type": "string"}, {}], "additionalItems": False},
        {"prefixItems": [{"type": "string"}, {}], "items": False},
    ),
    "required at the property": (
        {"properties": {"a": {"type": "string", "required": True}, "b": {"required": False}}},
        {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]},
    ),
    "nulls of a table": (
        {
            "type": "string",
            "enum": None,
            "const": None,
            "pattern": None,
            "properties": None,
            "default": None,
            "items": None,
            "title": "T",
        },
        {"type": "string", "title": "T"},
    ),
    "properties of other rows": (
        {"type": "object", "properties": {"a": {"type": "string"}, "b": None}, "required": None},
        {"type": "object", "properties": {"a": {"type": "string"}}},
    ),
    "null as a value": ({"enum": ["a", None], "default": None}, {"enum": ["a", None]}),
    "a constant null": ({"const": None}, {"const": None}),
    "a count as a float": ({"minLength": 5.0}, {"minLength": 5}),
    "an endless count": ({"maxLength": 2**53, "maxItems": 2**31}, {}),
    "keys of a record": (
        {"propertyNames": {"type": "string"}, "additionalProperties": {}},
        {"additionalProperties": {}},
    ),
    "never": ({"properties": {"a": {"not": {}}}}, {"properties": {"a": False}}),
    "no effect": ({"uniqueItems": False, "then": {}, "minContains": 1, "$schema": "urn:x", "default": 1}, {}),
}


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_other_dialects_are_read(name):
    spelled, plain = SAME[name]
    assert read_dialect(spelled) == plain
    assert read_dialect(plain) == plain


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"^[^[]+$", ["a]"], ["["]),
        ("^[a&&b]$", ["a", "&", "b"], ["&&"]),
        ("^[]|x$", ["x"], [""]),
        ("^[^]$", ["x", "\n"], [""]),
        ("^{a}$", ["{a}"], ["a"]),
        (r"^a{2}\{$", ["aa{"], ["a{"]),
        (r"^\cA\0$", ["\x01\0"], ["cA0"]),
        (r"^\ud83d\ude00$", ["\U0001f600"], ["x"]),
        ("^a.b$", ["a b"], ["a\rb", "a\u2028b"]),
        (r"^\d\w$", ["1a"], ["\u0661a", "1\u00e9"]),
        (r"^\p{Lu}$", ["\u00c4"], ["\u00e4"]),
        (r"^\u{1F600}$", ["\U0001f600"], ["u"]),
    ],
)
def test_a_pattern_matches_what_it_matches_in_ecma_262(pattern, yes, no):
    for text in yes:
        fit({"allOf": [{"pattern": pattern}, {"const": text}]}, is_strict=True)
    for text in no:
        with pytest.raises(RequestError, match="no value satisfies it"):
            fit({"allOf": [{"pattern": pattern}, {"const": text}]}, is_strict=True)


def test_the_pattern_of_dates_has_each_day_of_the_calendar_and_no_other():
    date = re.compile(EXACT_PATTERNS["date"])
    for year in (*range(420), 1900, 2000, 2023, 2024, 2100, 2400, 9996, 9999):
        for month, day in [(month, day) for month in range(14) for day in (0, 1, 28, 29, 30, 31, 32)]:
            text = f"{year:04d}-{month:02d}-{day:02d}"
            try:
                datetime.date.fromisoformat(text)
            except ValueError:
                assert not date.search(text)
            else:
                assert date.search(text)


@pytest.mark.parametrize(("name", "reference"), [("café", "caf%C3%A9"), ("a/b", "a~1b"), ("a b", "a%20b")])
def test_an_escaped_reference_is_held_even_where_strict(name, reference):
    schema = {"$defs": {name: NAME}, **fields(to={"$ref": f"#/$defs/{reference}"})}
    for is_strict in (True, False):
        assert fit(schema, is_strict=is_strict) == FittedSchema(schema)


def test_a_reference_to_a_name_of_another_script_needs_no_escapes():
    schemas = [{"$defs": {"café": NAME}, **fields(to={"$ref": f"#/$defs/{name}"})} for name in ("café", "caf%C3%A9")]
    for is_strict in (True, False):
        assert fit(schemas[0], is_strict=is_strict) == FittedSchema(schemas[1])


@pytest.mark.parametrize("name", ["date", "time", "date-time"])
@pytest.mark.parametrize("seed", range(5))
def test_dates_and_times_that_a_grammar_admits_are_read_by_python(name, seed):
    for schema in ({"type": "string", "format": name}, {"type": "string", "format": name, "pattern": "^[0-9]{2}"}):
        text = said(fit(schema, is_strict=True).schema, seed)
        kind = {"date": datetime.date, "time": datetime.time, "date-time": datetime.datetime}[name]
        kind.fromisoformat(text)


# Schemas as the tools of clients write these, and whether every keyword is held.
CLIENTS: dict[str, dict[str, Any]] = {
    "pydantic 2": {
        "$defs": {
            "Size": {"enum": ["s", "m"], "title": "Size", "type": "string"},
            "Item": {
                "properties": {
                    "size": {"$ref": "#/$defs/Size", "default": "s"},
                    "parts": {"items": {"$ref": "#/$defs/Item"}, "maxItems": 1, "type": "array", "default": []},
                    "price": {
                        "anyOf": [{"minimum": 0, "maximum": 9, "type": "integer"}, {"type": "null"}],
                        "default": None,
                    },
                },
                "required": ["size"],
                "title": "Item",
                "type": "object",
                "additionalProperties": False,
            },
        },
        **fields(item={"$ref": "#/$defs/Item"}, day={"format": "date", "type": "string", "title": "Day"}),
    },
    "zod 4": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **fields(
            id={
                "type": "string",
                "format": "uuid",
                "pattern": "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]+)$",
            },
            count={"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
            pair={
                "type": "array",
                "prefixItems": [{"type": "boolean"}, {"type": "null"}],
                "items": False,
                "minItems": 2,
            },
        ),
    },
    "zod-to-json-schema": {
        "$ref": "#/definitions/Order",
        "definitions": {
            "Order": fields(
                a={"type": ["integer", "null"], "exclusiveMinimum": 0, "maximum": 20},
                b={"$ref": "#/definitions/Order/properties/a"},
            )
        },
        "$schema": "http://json-schema.org/draft-07/schema#",
    },
    "draft 4": {
        "id": "order",
        "$schema": "http://json-schema.org/draft-04/schema#",
        **fields(a={"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 5}),
    },
    "a model context server": {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
        "annotations": {"readOnlyHint": True},
    },
    "a discriminated union": fields(
        pet={
            "discriminator": {"propertyName": "kind"},
            "oneOf": [fields(kind={"const": "cat"}, lives={"enum": [7, 9]}), fields(kind={"const": "dog"})],
        }
    ),
    "Python's Optional by LangChain": fields(
        to={"anyOf": [NAME, {"type": "null"}], "default": None, "title": "To", "extra": {"a": 1}}
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("seed", range(2))
def test_what_a_strict_schema_of_a_client_admits_is_valid(name, seed):
    fitted = fit(CLIENTS[name], is_strict=True)
    assert not fitted.notes and not fit(CLIENTS[name], is_strict=False).notes
    value = said(fitted.schema, seed)
    jsonschema.validate(value, CLIENTS[name])


def keywords() -> st.SearchStrategy[dict[str, Any]]:
    few = st.integers(0, 3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["string", "integer", "null", ["integer", "null"], "array", "object", "boolean"]),
            "enum": st.sampled_from([["a", 1, None], [[1], {"a": 2}], ["bcd"]]),
            "minLength": few,
            "maxLength": few,
            "pattern": st.sampled_from(["^[ab]+$", "b", "^(?!a)", "^a.?$", r"^\d\s$"]),
            "format": st.sampled_from(["date", "ipv4", "unknown-format", "uuid"]),
            "minimum": st.integers(-9, 9),
            "exclusiveMaximum": st.integers(-9, 9),
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "minItems": few,
            "maxItems": few,
            "uniqueItems": st.booleans(),
            "required": st.lists(st.sampled_from(["a", "b"]), unique=True),
            "maxProperties": few,
            "minProperties": st.integers(0, 2),
            "not": st.sampled_from([{"type": "string"}, {}]),
            "title": st.just("T"),
        },
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        child = inner | st.booleans()
        applied = st.fixed_dictionaries(
            {},
            optional={
                "properties": st.dictionaries(st.sampled_from(["a", "b"]), child, max_size=2),
                "additionalProperties": child,
                "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$", "^(?!a)"]), child, max_size=2),
                "propertyNames": st.sampled_from([{"type": "string"}, {"maxLength": 1}]),
                "items": child,
                "prefixItems": st.lists(child, min_size=1, max_size=2),
                "anyOf": st.lists(child, min_size=1, max_size=2),
                "allOf": st.lists(child, min_size=1, max_size=2),
                "oneOf": st.lists(child, min_size=1, max_size=2),
            },
        )
        return st.builds(lambda own, within: own | within, keywords(), applied)

    return st.recursive(keywords(), grown, max_leaves=4)


@settings(max_examples=60)
@given(schemas(), st.integers(0, 9))
def test_whatever_a_strict_grammar_admits_is_valid(schema, seed):
    try:
        fitted = fit(schema, is_strict=True)
    except RequestError:
        assume(False)
    jsonschema.Draft202012Validator(schema).validate(said(fitted.schema, seed))


@settings(max_examples=60)
@given(schemas(), st.integers(0, 9))
def test_where_nothing_is_noted_an_answer_to_a_schema_that_is_not_strict_is_valid(schema, seed):
    try:
        fitted = fit(schema, is_strict=False)
    except RequestError:
        assume(False)
    value = said(fitted.schema, seed)
    if not fitted.notes:
        jsonschema.Draft202012Validator(schema).validate(value)
