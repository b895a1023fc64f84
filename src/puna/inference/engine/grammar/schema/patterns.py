"""Regular expressions of ECMA-262 (the syntax of JSON Schema) -> the syntax of Rust's regex crate, with equal matches.

Translates syntax with a different meaning or spelling in Rust. Constructs without support in Rust (look-around,
back-references) stay, for fit.py to leave out.
"""

import re

# Within brackets, Rust reads these as nested classes and operations on sets.
_OPERATORS = "[&~"
_QUANTIFIER = re.compile(r"\{\d+(?:,\d*)?\}")
_SURROGATES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_ESCAPE = re.compile(r"\\(?:c([A-Za-z])|0(?!\d)|([pPu]\{[^}]*\}|.))", re.DOTALL)
_ANY_IN_LINE = r"[^\n\r\u2028\u2029]"


def rust_pattern(pattern: str) -> str:
    """Translate a pattern.

    Source: ECMA-262, section 22.2.1 (Patterns) and annex B.1.2; docs.rs/regex, section "Syntax".

    Example:
        >>> rust_pattern("^[^[]{2}{x}$")
        '^[^\\\\[]{2}\\\\{x}$'
    """
    pattern = _SURROGATES.sub(_character, pattern)
    out: list[str] = []
    at, is_class = 0, False
    while at < len(pattern):
        if escape := _ESCAPE.match(pattern, at):
            out.append(_escape(escape))
            at = escape.end()
            continue
        char = pattern[at]
        if is_class:
            is_class = char != "]"
            out.append("\\" + char if char in _OPERATORS else char)
        elif char == "[":
            opening = re.compile(r"\[\^?\]?").match(pattern, at)
            assert opening
            is_class = not opening[0].endswith("]")
            out.append({"[]": r"[^\s\S]", "[^]": r"[\s\S]"}.get(opening[0], opening[0]))
            at = opening.end() - 1
        elif char == "{" and not _QUANTIFIER.match(pattern, at):
            out.append(r"\{")
        else:
            out.append(_ANY_IN_LINE if char == "." else char)
        at += 1
    return "".join(out)


def _escape(escape: re.Match[str]) -> str:
    if escape[1]:
        return rf"\x{ord(escape[1].upper()) - 64:02x}"
    return r"\x00" if escape[2] is None else escape[0]


def _character(pair: re.Match[str]) -> str:
    high, low = int(pair[1], 16), int(pair[2], 16)
    return rf"\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"
