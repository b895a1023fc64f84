#!/usr/bin/env bash
# Surprise: a JSON schema that has been through a table of Arrow can refuse every value. One tool has "const": "km"; the other
#   tool of the column comes back with "const": null beside "type": "string", and JSON Schema reads the null as the only value.
# Why it matters here: tools stand in Parquet files as structs. A reader that takes the nulls for what was written trains on, and
#   serves, a tool that no call fits. One that removes all nulls loses `"default": null`. Puna removes a null `const` where the
#   type of its schema does not admit null, and keeps `default`.
# Source: pyarrow 25.0.1, Table.from_pylist and to_pylist; https://json-schema.org/draft/2020-12/json-schema-validation section 6.1.3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==25.0.1 jsonschema==4.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import pyarrow as pa
from jsonschema import Draft202012Validator

print(f"pyarrow {version('pyarrow')}, jsonschema {version('jsonschema')}")
written = [
    {"type": "object", "properties": {"unit": {"type": "string", "const": "km"}}},
    {"type": "object", "properties": {"unit": {"type": "string"}}},
]
read = [row["schema"] for row in pa.Table.from_pylist([{"schema": schema} for schema in written]).to_pylist()]
print(f"written: {written[1]}")
print(f"read:    {read[1]}")
for value in ("mile", None):
    before, after = (Draft202012Validator(schema).is_valid({"unit": value}) for schema in (written[1], read[1]))
    print(f"unit = {value!r}: valid before {before}, after {after}")
    assert not after, "the behaviour is gone"
PYTHON
