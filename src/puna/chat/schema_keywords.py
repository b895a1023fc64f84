"""Keywords of JSON Schema that hold schemas, by the form of the value. Source: drafts 7 and 2020-12 (applicators)."""

# An object of schemas by name.
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
BRANCHES = ("anyOf", "oneOf", "allOf")
LISTS = (*BRANCHES, "prefixItems")
# One schema; `items` was a list of schemas before draft 2020-12, too.
SINGLES = (
    *("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
