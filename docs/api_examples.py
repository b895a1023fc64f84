"""Extension of the API reference: a docstring's "Example:" is shown as code, as griffe shows "Examples:"."""

from typing import Any

import griffe


class ApiExamples(griffe.Extension):
    """Rename the section in the docstrings that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute before it is parsed."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
