"""A client's JSON schema -> the schema for a grammar, with a note on every keyword left out.

Unsupported keywords are left out: look-ahead in a `pattern`, an unknown `format`, `if`, `not`. In a strict schema they
are errors. Notes and errors name fields and keywords, never values.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from puna.formats.chat.schema_keywords import LISTS, MAPS, SINGLES, pointed_value
from puna.inference.engine.grammar.schema.dialect import TYPES, Node, Path, children, read_dialect
from puna.inference.engine.grammar.schema.formats import EXACT_PATTERNS
from puna.pipeline.errors import RequestError

MAX_SCHEMA_CHARS = 100_000
MAX_SECONDS = 4.0
MAX_REASON_CHARS = 120
MAX_REMEMBERED = 128
# Order of precedence between contradicting keywords.
FIRST = ("enum", "const", "type", "properties", "prefixItems", "items", "additionalProperties", "required", "anyOf")
# Keywords of structure are never left out.
STRUCTURE = {"properties", "prefixItems", "items", "additionalProperties"}
SHAPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), (dict,)),
    **dict.fromkeys(("items", "additionalProperties", "not", "if", "then", "else", "contains"), (dict, bool)),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "enum", "required"), (list,)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), (int,)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("pattern", "format", "$ref"), (str,)),
    "type": (str, list),
}
MEANINGS = {
    "lookarounds not supported yet": "word boundaries are not supported",
    "Unimplemented keys": "not supported",
    "Unknown format": "an unknown format",
    "Unsatisfiable schema": "no value satisfies it",
    "Failed to generate regex": "the range is too large",
    "min/maxProperties only": "supported only where every property is required",
    "hexadecimal literal is not": "half of a surrogate pair",
}
JSON_NAMES = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
}


class FittedSchema(NamedTuple):
    """A compiling schema, and notes on keywords left out of the client's schema."""

    schema: Node
    notes: tuple[str, ...] = ()


class SchemaFitter:
    """Fits schemas; `problem` says why a schema has no grammar, "" where the schema has one.

    Example:
        >>> fitter = SchemaFitter(lambda schema: "unknown" if "format" in schema else "")
        >>> fitter.fit({"type": "string", "format": "x"}, is_strict=False, place="tool send").notes
        ('tool send: "format" is left out (unknown)',)
    """

    def __init__(self, problem: Callable[[Node], str]):
        self._problem = problem
        self._known: dict[tuple[str, str, bool], FittedSchema] = {}
        self._lock = threading.Lock()

    def fit(self, schema: Any, *, is_strict: bool, place: str) -> FittedSchema:
        """Return a compiling schema; RequestError, naming `place`, if none exists or strict forbids the changes."""
        if not isinstance(schema, dict):
            given = f"{place}: a JSON schema that is {type(schema).__name__}"
            raise RequestError(given, expected="an object")
        key = (json.dumps(schema), place, is_strict)
        if len(key[0]) > MAX_SCHEMA_CHARS:
            given = f"{place}: a JSON schema of {len(key[0]):,} characters"
            raise RequestError(given, expected=f"at most {MAX_SCHEMA_CHARS:,}")
        if key not in self._known:
            fitted = _Fitting(self._problem, is_strict, place).run(schema)
            with self._lock:
                if len(self._known) >= MAX_REMEMBERED:
                    self._known.clear()
                self._known[key] = fitted
        return self._known[key]


class _Fitting:
    """The state while fitting a schema."""

    def __init__(self, problem: Callable[[Node], str], is_strict: bool, place: str):
        self._ask, self._is_strict, self._place = problem, is_strict, place
        self._until = time.monotonic() + MAX_SECONDS
        self._notes: list[str] = []
        self._problems: dict[str, str] = {"{}": ""}

    def run(self, schema: Node) -> FittedSchema:
        root = _with_exact_formats(read_dialect(schema))
        # A property that no value satisfies compiles, and is never written: only strict schemas may have such.
        if self._is_strict and not self._problem(root):
            return FittedSchema(root)
        for path, node in _nodes(root):
            if not self._is_strict:
                self._open_branches(path, node)
            self._fit_node(root, path, node)  # Before its children, which may be left out with a keyword.
        reason = self._problem(root)
        if reason and any("oneOf" in node for _, node in _nodes(root)):
            reason = self._fit_choices(root)
        if reason:
            raise self._refusal((), f"a schema that cannot be followed ({reason})")
        return FittedSchema(root, tuple(dict.fromkeys(self._notes)))

    def _problem(self, schema: Node) -> str:
        text = json.dumps(schema, ensure_ascii=False)
        if text not in self._problems:
            if time.monotonic() > self._until:
                raise self._refusal((), f"a schema that takes more than {MAX_SECONDS:g} seconds to compile")
            self._problems[text] = _short(self._ask(schema))
        return self._problems[text]

    def _fit_node(self, root: Node, path: Path, node: Node) -> None:
        """Leave out unsupported keywords of a schema, regardless of nested schemas."""
        self._fit_reference(root, path, node)
        self._fit_types(path, node)
        if not self._problem(_hollow(node)):
            return
        self._check_shapes(path, node)
        supported: Node = {}
        for keyword in sorted(node, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
            value = node[keyword]
            reason = self._problem(_hollow(supported | {keyword: value}))
            if reason and keyword == "required":
                value = [name for name in value if name in node.get("properties", {})]
            if not reason or (value is not node[keyword] and not self._problem(_hollow(supported | {keyword: value}))):
                supported[keyword] = value
            if reason:
                self._leave_out(path, keyword, reason)
        if "patternProperties" in node and "patternProperties" not in supported:
            supported.pop("additionalProperties", None)  # It would forbid the properties that a pattern allows.
        node.clear()
        node.update(supported)

    def _open_branches(self, path: Path, node: Node) -> None:
        """Open closed objects in `allOf`: zod writes an intersection as closed objects."""
        branches = node.get("allOf")
        closed = [
            branch
            for branch in (branches if isinstance(branches, list) else [])
            if isinstance(branch, dict) and isinstance(branch.get("properties"), dict)
            if branch.get("additionalProperties") is False
        ]
        if len({frozenset(branch["properties"]) for branch in closed}) > 1:
            for branch in closed:
                del branch["additionalProperties"]
            reason = "the branches forbid the properties of one another"
            self._notes.append(f'{self._where(path)}: "additionalProperties" within "allOf" is left out ({reason})')

    def _fit_reference(self, root: Node, path: Path, node: Node) -> None:
        reference = node.get("$ref")
        if isinstance(reference, str) and not _is_resolvable(root, reference):
            self._leave_out(path, "$ref", "it points to nothing in the schema")
            del node["$ref"]

    def _fit_types(self, path: Path, node: Node) -> None:
        names = node.get("type", [])
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or all(name in TYPES for name in names):
            return
        if not path:
            raise self._refusal(path, '"type" that is unknown', expected=f"one of {', '.join(sorted(TYPES))}")
        self._leave_out(path, "type", "an unknown type")
        node.pop("type")

    def _fit_choices(self, root: Node) -> str:
        """Read `oneOf` as `anyOf` where the choices may overlap; return the remaining problem, or ""."""
        overlapping = [(path, node) for path, node in _nodes(root) if "oneOf" in node and "anyOf" not in node]
        for _, node in overlapping:
            node["anyOf"] = node.pop("oneOf")
        if reason := self._problem(root):
            return reason
        for path, node in overlapping:
            node["oneOf"] = node.pop("anyOf")
            if self._problem(root):
                self._leave_out(path, "oneOf", "its choices may overlap", instead="read as anyOf")
                node["anyOf"] = node.pop("oneOf")
        return ""

    def _check_shapes(self, path: Path, node: Node) -> None:
        """Refuse a keyword with a value of the wrong kind: a mistake, strict or not."""
        for keyword, value in node.items():
            kinds = SHAPES.get(keyword, (object,))
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
                names = [JSON_NAMES[kind] for kind in kinds if not (kind is int and float in kinds)]
                raise self._refusal(path, f'"{keyword}" that is {_name(value)}', expected=" or ".join(names))
            for name, child in _named(keyword, value):
                if not isinstance(child, dict | bool):
                    place = (*path, keyword, name)
                    raise self._refusal(place, f"a schema that is {_name(child)}", expected="an object")

    def _leave_out(self, path: Path, keyword: str, reason: str, *, instead: str = "left out") -> None:
        if self._is_strict or keyword in STRUCTURE:
            given = f'"{keyword}", which {"a strict schema" if self._is_strict else "a schema"} cannot have ({reason})'
            without = f'a schema without that "{keyword}"' + (', or without "strict"' if self._is_strict else "")
            raise self._refusal(path, given, expected=without)
        self._notes.append(f'{self._where(path)}: "{keyword}" is {instead} ({reason})')

    def _refusal(self, path: Path, given: str, *, expected: str = "") -> RequestError:
        return RequestError(f"{self._where(path)}: {given}", expected=expected)

    def _where(self, path: Path) -> str:
        field = _field(path)
        return f"{self._place}, field {field}" if field else self._place


def _with_exact_formats(root: Node) -> Node:
    for _, node in list(_nodes(root)):
        exact = EXACT_PATTERNS.get(node["format"]) if isinstance(node.get("format"), str) else None
        if exact and "pattern" in node:
            node["allOf"] = [*node.get("allOf", []), {"pattern": exact}]
        elif exact:
            del node["format"]
            node["pattern"] = exact
    return root


def _nodes(root: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Yield a schema and every schema inside, with paths."""
    yield path, root
    for step, child in children(root):
        if isinstance(child, dict):
            yield from _nodes(child, (*path, *step))


def _hollow(node: Node) -> Node:
    """Return a schema with `true` for every schema within; `$ref` and `oneOf` depend on these, and are left out."""
    hollow: Node = {}
    for keyword, value in node.items():
        if keyword in MAPS and isinstance(value, dict):
            value = {name: _true(child) for name, child in value.items()}
        elif keyword in LISTS and isinstance(value, list):
            value = [_true(child) for child in value]
        elif keyword in SINGLES:
            value = _true(value)
        if keyword not in ("$ref", "oneOf", "$defs", "definitions", "$id", "$anchor"):
            hollow[keyword] = value
    return hollow


def _true(child: Any) -> Any:
    return True if isinstance(child, dict) else child


def _named(keyword: str, value: Any) -> list[tuple[str | int, Any]]:
    if keyword in MAPS and isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if keyword in LISTS and isinstance(value, list) else []


def _is_resolvable(root: Node, reference: str) -> bool:
    if not reference.startswith("#"):
        return any("$id" in node for _, node in _nodes(root)) and "://" not in reference
    if not reference.startswith("#/"):
        return reference == "#" or any(node.get("$anchor") == reference[1:] for _, node in _nodes(root))
    return isinstance(pointed_value(root, reference), dict | bool)


def _field(path: Path) -> str:
    """Return a path in the words of a client: ("properties", "to", "items") is to[]."""
    field, parts = "", iter(path)
    for part in parts:
        if part == "items":
            field += "[]"
        elif part == "prefixItems":
            field += f"[{next(parts, 0)}]"
        elif part in ("additionalProperties", "patternProperties"):
            field += ".*"
            if part == "patternProperties":
                next(parts, None)
        elif part in ("$defs", "definitions"):
            field = f"{part}.{next(parts, '')}"
        elif part in ("properties", "dependentSchemas"):
            field += f".{next(parts, '')}"
        elif part in LISTS:
            next(parts, None)
    shown = "".join(char if char.isprintable() else "?" for char in field.removeprefix("."))
    return shown[:MAX_REASON_CHARS]


def _name(value: Any) -> str:
    return "null" if value is None else JSON_NAMES.get(type(value), type(value).__name__)


def _short(problem: str) -> str:
    """Return the sentence of an error message, without quotations of the schema."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = (errors or lines or [""])[0]
    for beginning, meaning in MEANINGS.items():
        if text.startswith(beginning):
            return meaning
    return text[:MAX_REASON_CHARS]
