#!/usr/bin/env bash
# Surprise: llguidance reads the `pattern` of a JSON schema as a regular expression of Rust, where "&&" within brackets is an
#   intersection and "[" opens a nested class. JSON Schema has ECMA-262's syntax, where both are plain characters. The grammar
#   compiles without a warning and admits other texts: "^[a&&b]*$" admits "" alone, and not "a", "b" or "&".
# Why it matters here: patterns for passwords and e-mail addresses list punctuation. An answer that the grammar forces is then
#   wrong by the client's own validator, or the model cannot write the right one. Puna escapes these characters first.
# Source: llguidance/parser/src/json/schema.rs (`regex_to_lark`), https://docs.rs/regex/latest/regex/#character-classes;
#   https://json-schema.org/draft/2020-12/json-schema-core#section-6.4 and ECMA-262, section 22.2.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 jsonschema==4.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
from importlib.metadata import version

import jsonschema
import llguidance

print(f"llguidance {version('llguidance')}, jsonschema {version('jsonschema')}")


def admits(pattern: str, text: str) -> bool:
    schema = {"allOf": [{"type": "string", "pattern": pattern}, {"const": text}]}
    return not llguidance.LLMatcher.validate_grammar(json.dumps({"grammars": [{"json_schema": schema}]}), None)


for pattern, text in (("^[a&&b]*$", "a"), ("^[!#&&+]*$", "&"), ("^[ab]*$", "a")):
    is_valid = jsonschema.Draft202012Validator({"pattern": pattern}).is_valid(text)
    print(f"{pattern}: {text!r} is {'valid' if is_valid else 'invalid'}, the grammar admits it: {admits(pattern, text)}")
assert not admits("^[a&&b]*$", "a") and admits("^[ab]*$", "a"), "the behaviour is gone"
PYTHON
