#!/usr/bin/env bash
# Surprise: pydantic's strict validation of JSON text takes a key that stands twice in one object (the last one counts), NaN,
#   which JSON does not have, and 1e999, which becomes infinity. strict=True is about types of Python, not about JSON.
# Why it matters here: manifests say which files an artifact has, with their hashes. A text with "files" twice is read one way
#   by one program and another way by the next. Puna reads the text with Python's json first, which has hooks for all three.
# Source: pydantic 2.14.4, TypeAdapter.validate_json; RFC 8259, sections 4 and 6
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pydantic>=2.14,<2.15'
"$folder/venv/bin/python" - <<'PYTHON'
import math

import pydantic
from pydantic import TypeAdapter

print(f"pydantic {pydantic.VERSION}")
twice = TypeAdapter(dict[str, int]).validate_json('{"size": 1, "size": 2}', strict=True)
nan, huge = (TypeAdapter(float).validate_json(text, strict=True) for text in ("NaN", "1e999"))
print(f"a key twice: {twice}; NaN: {nan}; 1e999: {huge}")
assert twice == {"size": 2} and math.isnan(nan) and math.isinf(huge), "the behaviour is gone"
PYTHON
