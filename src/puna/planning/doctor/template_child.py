"""A foreign chat template and conversations on standard input -> rendered texts as JSON lines on standard output.

render.py starts this file as an isolated child process without environment variables. Only Jinja and the standard
library are imported. Before reading the template, the process limits memory, time and output, and gives up files,
processes and imports.
"""

import json
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import jinja2.ext
from jinja2.exceptions import SecurityError
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 256 * 2**20
CPU_SECONDS = 2
OUTPUT_BYTES = 8 * 2**20
MAX_TEXT = 200_000
FROZEN_DATE = "26 Jul 2024"
# Private-use characters around the text of {% generation %}; test conversations never contain these characters.
MARK_START, MARK_END = "\ue000", "\ue001"
FORBIDDEN_EVENTS = ("open", "import", "os.", "socket.", "subprocess.", "shutil.", "ctypes.", "signal.", "pty.", "mmap.")


class Generation(jinja2.ext.Extension):
    """The tag {% generation %} of transformers; marks the text inside with MARK_START and MARK_END."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return MARK_START + caller() + MARK_END


def build_environment() -> ImmutableSandboxedEnvironment:
    """Return a Jinja environment with the settings of transformers and a constant clock."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda _: FROZEN_DATE}
    return environment


def _to_json(value: Any, indent: int | None = None, separators: Any = None, **options: Any) -> str:
    return json.dumps(
        value, ensure_ascii=options.get("ensure_ascii", False), indent=indent, separators=separators,
        sort_keys=options.get("sort_keys", False),
    )  # fmt: skip


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def confine() -> None:
    """Limit memory and processor time, and give up files and processes, permanently."""
    limits = {
        resource.RLIMIT_AS: _memory_in_use() + MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_CORE: 0,
    }
    for name, most in limits.items():
        hard = resource.getrlimit(name)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (most, most))
    sys.addaudithook(_refuse)


def _memory_in_use() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no /proc: count from zero
        return 0


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(FORBIDDEN_EVENTS):
        raise PermissionError(f"a template may not: {event}")


def main() -> None:
    """Write {"text"} or {"error", "kind"} for every conversation, right after rendering."""
    request = json.load(sys.stdin)
    environment = build_environment()
    _import_late(environment)
    confine()
    try:
        template = environment.from_string(request["template"])
    except Exception as error:
        _answer(error=str(error), kind=_kind(error, "syntax"))
        return
    for variables in request["conversations"]:
        try:
            text = template.render(**variables)
        except Exception as error:
            _answer(error=str(error), kind=_kind(error, "refused"))
        else:
            _answer(text=text[:MAX_TEXT])


def _import_late(environment: ImmutableSandboxedEnvironment) -> None:
    """Make Jinja import the modules for error messages now, since confine() forbids imports."""
    for text in ("{% if", "{{ raise_exception('') }}", "{{ ''.__class__.x }}", "{{ [1] | map('string') | tojson }}"):
        with suppress(jinja2.TemplateError, TypeError):
            environment.from_string(text).render()


def _kind(error: Exception, otherwise: str) -> str:
    if isinstance(error, SecurityError | PermissionError):
        return "security"
    return "memory" if isinstance(error, MemoryError | OverflowError) else otherwise


def _answer(**fields: str) -> None:
    fields = {name: text[:MAX_TEXT] for name, text in fields.items()}
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
