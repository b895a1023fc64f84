"""The prompt format for other programs: a Jinja template that renders what format.py encodes.

Takes messages, tools, environment, today and add_generation_prompt. Gives the same ids through transformers, with
one exception: a template writes one string, so a text that spells a special token becomes that token there.
"""

from puna.chat.format import CALL_SEPARATOR, KNOWLEDGE_LINE, TOOLS_AFTER, TOOLS_BEFORE
from puna.chat.parse import BUILTIN_TOOLS, CODE_TAKEN, CODE_TOOL

_CONSTANTS = {
    "tools_before": TOOLS_BEFORE,
    "tools_after": TOOLS_AFTER,
    "knowledge_line": KNOWLEDGE_LINE,
    "call_separator": CALL_SEPARATOR,
    "builtin_tools": BUILTIN_TOOLS,
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
    {%- if call.name in builtin_tools and keys == ['query'] -%}
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

{%- macro json_calls(calls) -%}
    {%- for call in calls -%}
        {{- '{"type": "function", "name": ' + call.function.name | tojson -}}
        {%- set arguments = call.function.arguments -%}
        {{- ', "parameters": ' + (arguments if arguments is string else arguments | tojson) + '}' -}}
        {%- if not loop.last -%}{{- call_separator -}}{%- endif -%}
    {%- endfor -%}
{%- endmacro -%}

{%- macro assistant(message) -%}
    {%- set content = (message.content or '') | trim -%}
    {%- set calls = message.tool_calls or [] -%}
    {{- content -}}
    {%- if calls -%}
        {%- set found = namespace(unknown=false, native='') -%}
        {%- for call in calls -%}
            {%- if call.function.name not in names -%}{%- set found.unknown = true -%}{%- endif -%}
        {%- endfor -%}
        {%- if environment and calls | length == 1 and found.unknown -%}
            {%- set found.native = native(calls[0].function) -%}
        {%- endif -%}
        {%- if environment or content or found.unknown -%}{{- '<|python_tag|>' -}}{%- endif -%}
        {{- found.native or json_calls(calls) -}}
    {%- endif -%}
    {{- '<|eom_id|>' if calls and environment else '<|eot_id|>' -}}
{%- endmacro -%}
"""

_DIALOGUE = r"""
{%- set tools = tools or [] -%}
{%- set environment = environment or '' -%}
{%- set names = tools | map(attribute='function.name') | list -%}
{%- set lines = ['Environment: ' + environment] if environment else [] -%}
{%- if today -%}{%- set lines = lines + [knowledge_line, 'Today Date: ' + today] -%}{%- endif -%}
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- set text = (messages[0].content or '') | trim if has_system else '' -%}
{{- '<|begin_of_text|>' -}}
{%- if lines or has_system -%}
    {{- header('system') + lines | join('\n') + ('\n\n' if lines and text else '') + text + '<|eot_id|>' -}}
{%- endif -%}
{%- if tools -%}
    {{- header('user') + tools_before -}}
    {%- for tool in tools -%}{{- tool | tojson(indent=4) + ('' if loop.last else '\n') -}}{%- endfor -%}
    {{- tools_after + '<|eot_id|>' -}}
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

CHAT_TEMPLATE = (_SETTINGS + _MACROS + _DIALOGUE).strip() + "\n"
