"""Prompt format and settings of an exported model -> an Ollama Modelfile.

The template uses Go's text/template with Ollama's variables and renders the prompts of chat/format.py;
docs/reference/gguf.md lists the differences. Ollama adds begin_of_text itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.formats.chat.format import CALL_SEPARATOR, TOOLS_AFTER, TOOLS_BEFORE
from puna.pipeline.errors import CheckpointError

STOP_TEXTS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
# Keys of generation_config.json -> parameters of Ollama.
PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
PARAMETERS |= {"repetition_penalty": "repeat_penalty"}

_HEADER = "<|start_header_id|>%s<|end_header_id|>\n\n"

# A schema in the layout of json.dumps(indent=4), key by key: Go's JSON has no spaces.
_PROPERTY = """
                {{ json $name }}: {
{{- $comma := "" }}
{{- if $property.Type }}
                    "type": {{ json $property.Type }}{{ $comma = "," }}{{ end }}
{{- if $property.Description }}{{ $comma }}
                    "description": {{ json $property.Description }}{{ $comma = "," }}{{ end }}
{{- if $property.Enum }}{{ $comma }}
                    "enum": [{{ range $index, $value := $property.Enum }}{{ if $index }},{{ end }}
                        {{ json $value }}{{ end }}
                    ]{{ $comma = "," }}{{ end }}
{{- if $property.Items }}{{ $comma }}
                    "items": {{ json $property.Items }}{{ end }}
                }"""
_TOOL = """{
    "type": {{ json .Type }},
    "function": {
        "name": {{ json .Function.Name }},
{{- if .Function.Description }}
        "description": {{ json .Function.Description }},{{ end }}
        "parameters": {
            "type": {{ json .Function.Parameters.Type }},
            "properties": {
{{- $next := "" }}{{ range $name, $property := .Function.Parameters.Properties }}{{ $next }}{{ $next = "," }}%s
{{- end }}{{ if $next }}
            {{ end }}}
{{- if .Function.Parameters.Required }},
            "required": [{{ range $index, $name := .Function.Parameters.Required }}{{ if $index }},{{ end }}
                {{ json $name }}{{ end }}
            ]{{ end }}
        }
    }
}"""
_TOOLS = (
    "{{- if .Tools }}" + _HEADER % "user" + TOOLS_BEFORE
    + "{{ range $number, $tool := .Tools }}{{ if $number }}\n{{ end }}" + _TOOL % _PROPERTY
    + "{{ end }}" + TOOLS_AFTER + "<|eot_id|>{{ end }}"
)  # fmt: skip

# NOTE: Ollama takes the first literal text inside `if .ToolCalls` as the prefix of the model's calls. Hence variables
# in place of some literals.
_CALLS = (
    '{{ $separator := "" }}{{ range .ToolCalls }}{{ $separator }}{"type": "function", "name": '
    '{{ json .Function.Name }}, "parameters": { {{- $next := "" }}'
    '{{- range $key, $value := .Function.Arguments }}{{ $next }}{{ json $key }}: {{ json $value }}{{ $next = ", " }}'
    '{{ end }}}}{{ $separator = "SEPARATOR" }}{{ end }}'
).replace("SEPARATOR", CALL_SEPARATOR)
_MESSAGE = _HEADER % '{{ if eq .Role "tool" }}ipython{{ else }}{{ .Role }}{{ end }}' + "{{ .Content }}"
_FIRST_IS_SYSTEM = '{{ if and (eq $index 0) (eq .Role "system") }}'


def render_template(environment: str = "") -> str:
    """Return the prompt format as Ollama's template, for the environment "" or "ipython"."""
    find_system = "{{- range $index, $message := .Messages }}" + _FIRST_IS_SYSTEM + "%s{{ end }}{{ end }}"
    system = _HEADER % "system"
    if environment:
        opening = '{{- $system := "" }}' + find_system % "{{ $system = .Content }}"
        opening += f"{system}Environment: {environment}{{{{ if $system }}}}\n\n{{{{ $system }}}}{{{{ end }}}}<|eot_id|>"
        calls = "{{ if .ToolCalls }}<|python_tag|>" + _CALLS + "<|eom_id|>{{ else }}<|eot_id|>{{ end }}"
    else:
        opening = find_system % f"{system}{{{{ .Content }}}}<|eot_id|>"
        calls = "{{ $calls := .ToolCalls }}{{ if and .Content $calls }}<|python_tag|>{{ end }}"
        calls += "{{ if .ToolCalls }}" + _CALLS + "{{ end }}<|eot_id|>"
    messages = "{{- range $index, $message := .Messages }}" + _FIRST_IS_SYSTEM + "{{ else }}" + _MESSAGE + calls
    return opening + _TOOLS + messages + "{{ end }}{{ end }}" + _HEADER % "assistant"


def write_modelfile(
    directory: Path,
    gguf_name: str,
    *,
    sampling: Mapping[str, Any],
    stops: Sequence[str] = STOP_TEXTS,
    environment: str = "",
    system: str = "",
    licence: str = "",
) -> Path:
    """Write `Modelfile` beside the GGUF file, and return the path.

    Args:
        gguf_name: File name of the GGUF file.
        sampling: Sampling defaults with the keys of generation_config.json.
        system: System message of conversations without one.
    """
    if Path(gguf_name).name != gguf_name or gguf_name.split() != [gguf_name]:
        raise CheckpointError(f"file name {gguf_name!r}", expected="a file name without path and spaces")
    numbers = {PARAMETERS[key]: value for key, value in sampling.items() if key in PARAMETERS}
    numbers |= {"temperature": 0} if sampling.get("do_sample") is False else {}
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_quote(render_template(environment), 'template')}"]
    lines += [f"PARAMETER {name} {value:g}" for name, value in sorted(numbers.items())]
    lines += [f"PARAMETER stop {json.dumps(stop)}" for stop in stops]
    lines += [f"SYSTEM {_quote(system, 'system text')}"] if system else []
    lines += [f"LICENSE {_quote(licence, 'licence')}"] if licence else []
    path = directory / "Modelfile"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _quote(text: str, what: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise CheckpointError(
            f'a {what} with """ in it or " at its end', expected="a text that triple quotes can enclose"
        )
    return f'"""{text}"""'
