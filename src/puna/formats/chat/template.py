"""The prompt format as a Jinja chat template for external programs, with the same token ids as format.py.

Variables: messages, tools, environment, builtin_tools, call_format, today, add_generation_prompt. An exception to equal
ids: a template renders a single string, so a text with the spelling of a special token becomes the token in
external programs. The template reads no clock.
"""

from puna.formats.chat.conversation import BUILTIN_TOOLS
from puna.formats.chat.format import (
    CALL_SEPARATOR,
    DELETE,
    DELETE_ESCAPED,
    KNOWLEDGE_LINE,
    TAGS_AFTER,
    TAGS_BEFORE,
    TAGS_EACH,
    TOOLS_AFTER,
    TOOLS_BEFORE,
    TOOLS_LINE,
)
from puna.formats.chat.parse import CODE_TAKEN, CODE_TOOL, TAG_CLOSING, TAG_OPENING

_CONSTANTS = {
    "tools_before": TOOLS_BEFORE,
    "tools_after": TOOLS_AFTER,
    "tags_before": TAGS_BEFORE,
    "tags_each": TAGS_EACH,
    "tags_after": TAGS_AFTER,
    "tag_opening": TAG_OPENING,
    "tag_closing": TAG_CLOSING,
    "delete": DELETE,
    "delete_escaped": DELETE_ESCAPED,
    "tools_line": TOOLS_LINE,
    "knowledge_line": KNOWLEDGE_LINE,
    "call_separator": CALL_SEPARATOR,
    "known_tools": BUILTIN_TOOLS,
    "code_tool": CODE_TOOL,
    "code_taken": CODE_TAKEN,
}

_MACROS = r"""
{%- macro header(name) -%}
    {{- '<|start_header_id|>' + name + '<|end_header_id|>\n\n' -}}
{%- endmacro -%}

{#- A call of a tool that the model knows without a schema, else an empty string. -#}
{%- macro native(call) -%}
    {%- set keys = call.arguments | list -%}
    {%- if call.name in known_tools and keys == ['query'] -%}
        {%- set query = call.arguments['query'] -%}
        {%- if query is string and '"' not in query -%}
            {{- call.name + '.call(query="' + query + '")' -}}
        {%- endif -%}
    {%- elif call.name == code_tool and keys == ['code'] and call.arguments['code'] is string -%}
        {%- set code = call.arguments['code'] -%}
        {%- if code == code | trim and not code.startswith(code_taken) -%}
            {{- code -}}
        {%- endif -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro arguments(call) -%}
    {{- call.arguments if call.arguments is string else call.arguments | tojson | replace(delete, delete_escaped) -}}
{%- endmacro -%}

{%- macro json_calls(calls) -%}
    {%- for call in calls -%}
        {{- '{"type": "function", "name": ' + call.function.name | tojson -}}
        {{- ', "parameters": ' + arguments(call.function) + '}' -}}
        {%- if not loop.last -%}{{- call_separator -}}{%- endif -%}
    {%- endfor -%}
{%- endmacro -%}

{%- macro tagged_calls(calls) -%}
    {%- for call in calls -%}
        {{- tag_opening + call.function.name + '>' -}}
        {{- arguments(call.function) + tag_closing -}}
    {%- endfor -%}
{%- endmacro -%}

{%- macro assistant(message) -%}
    {%- set content = (message.content or '') | trim -%}
    {%- set calls = message.tool_calls or [] -%}
    {{- content -}}
    {%- if calls -%}
        {%- set found = namespace(unknown=false, native='', tagged=false) -%}
        {%- for call in calls -%}
            {%- if call.function.name not in names -%}{%- set found.unknown = true -%}{%- endif -%}
        {%- endfor -%}
        {%- if environment and calls | length == 1 and found.unknown -%}
            {%- set found.native = native(calls[0].function) -%}
        {%- endif -%}
        {%- if call_format == 'tag' and not found.unknown and tag_opening not in content -%}
            {%- set found.tagged = true -%}
            {{- tagged_calls(calls) -}}
        {%- else -%}
            {%- if environment or content or found.unknown -%}{{- '<|python_tag|>' -}}{%- endif -%}
            {{- found.native or json_calls(calls) -}}
        {%- endif -%}
        {{- '<|eom_id|>' if environment and not found.tagged else '<|eot_id|>' -}}
    {%- else -%}
        {{- '<|eot_id|>' -}}
    {%- endif -%}
{%- endmacro -%}

{%- macro listed_tools() -%}
    {{- tools_before -}}
    {%- for tool in tools -%}{{- tool | tojson(indent=4) + ('' if loop.last else '\n') -}}{%- endfor -%}
    {{- tools_after -}}
{%- endmacro -%}

{%- macro tagged_tools() -%}
    {{- tags_before -}}
    {%- for tool in tools -%}
        {{- tags_each[0] ~ tool.function.name ~ tags_each[1] ~ (tool.function.description or '') ~ tags_each[2] -}}
        {{- tool.function | tojson + ('' if loop.last else '\n\n') -}}
    {%- endfor -%}
    {{- tags_after -}}
{%- endmacro -%}
"""

_DIALOGUE = r"""
{%- set tools = tools or [] -%}
{%- set environment = environment or '' -%}
{%- set call_format = call_format or 'json' -%}
{%- set names = tools | map(attribute='function.name') | list -%}
{%- set lines = ['Environment: ' + environment] if environment else [] -%}
{%- if builtin_tools -%}{%- set lines = lines + [tools_line + builtin_tools | join(', ')] -%}{%- endif -%}
{%- if today -%}{%- set lines = lines + [knowledge_line, 'Today Date: ' + today] -%}{%- endif -%}
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- set text = (messages[0].content or '') | trim if has_system else '' -%}
{{- '<|begin_of_text|>' -}}
{%- if lines or has_system -%}
    {{- header('system') + lines | join('\n') + ('\n\n' if lines and text else '') + text + '<|eot_id|>' -}}
{%- endif -%}
{%- if tools -%}
    {{- header('user') + (tagged_tools() if call_format == 'tag' else listed_tools()) + '<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- header('assistant') -}}
        {%- generation -%}{{- assistant(message) -}}{%- endgeneration -%}
    {%- elif not (loop.first and has_system) -%}
        {{- header('ipython' if message.role == 'tool' else message.role) -}}
        {{- (message.content or '') | trim + '<|eot_id|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- header('assistant') -}}{%- endif -%}
"""

_SETTINGS = "".join(f"{{%- set {name} = {value!r} -%}}\n" for name, value in _CONSTANTS.items())
_SETTINGS = _SETTINGS.replace(r"\x7f", DELETE)  # Other Jinja engines support fewer escapes than jinja2.

CHAT_TEMPLATE = (_SETTINGS + _MACROS + _DIALOGUE).strip() + "\n"
# Without the `generation` tags, which transformers alone supports: for llama.cpp and others.
PLAIN_TEMPLATE = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
