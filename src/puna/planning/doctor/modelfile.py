"""An Ollama Modelfile -> findings about where it leads, its template, stops and context. Renders no Go template."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from puna.formats.checkpoint.gguf.container import read_gguf
from puna.formats.checkpoint.gguf.modelfile import STOP_TEXTS
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.report import Report, listed

MAX_BYTES = 2**20
MIN_CONTEXT = 4096
COMMAND = re.compile(r"^[ \t]*(FROM|PARAMETER|TEMPLATE|SYSTEM|ADAPTER|LICENSE|MESSAGE|REQUIRES)[ \t]+", re.I | re.M)
BEGIN = "<|begin_of_text|>"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")


class Command(NamedTuple):
    """One instruction; a text in quotes without them."""

    name: str
    value: str


def check_modelfile(path: Path, report: Report) -> None:
    """Add all findings about a Modelfile."""
    if path.stat().st_size > MAX_BYTES:
        report.add(
            "file-unreadable", path.name, f"more than {MAX_BYTES:,} bytes", "Name a Modelfile, which is a short text"
        )
        return
    commands = read_commands(path.read_text(encoding="utf-8", errors="replace"))
    source = next((command.value for command in commands if command.name == "FROM"), "")
    report.facts["from"] = ascii(source)[1:-1][:120] or "nothing"
    local = _check_source(path, source, report)
    for command in commands:
        if command.name == "ADAPTER" and not _resolve(path, command.value).exists():
            what = f"ADAPTER {command.value!a:.120} leads to nothing"
            report.add("modelfile-from", path.name, what, "Write a path from the Modelfile's own directory")
    _check_template(path, commands, report, local)
    _check_parameters(path, commands, report, is_local=local is not None)


def read_commands(text: str) -> list[Command]:
    """Return a Modelfile's instructions in their order; what is in triple quotes is text, whatever it spells."""
    commands: list[Command] = []
    position = 0
    while found := COMMAND.search(text, position):
        start = found.end()
        if text.startswith('"""', start):
            end = text.find('"""', start + 3)
            end = len(text) if end < 0 else end
            value, position = text[start + 3 : end], end + 3
        else:
            end = text.find("\n", start)
            position = len(text) if end < 0 else end
            value = text[start:position].strip()
        commands.append(Command(found.group(1).upper(), value))
    return commands


def _check_source(path: Path, source: str, report: Report) -> Path | None:
    """Return the file or directory that FROM names, None if it names a model that Ollama keeps or fetches."""
    if not source:
        report.add(
            "modelfile-from", path.name, "no FROM; expected a model", "Write FROM ./MODEL.gguf as the first line"
        )
        return None
    if re.match(r"[a-z]+://", source):
        remedy = "Download the file, look at it with puna doctor, and write FROM ./FILE.gguf"
        report.add("modelfile-remote", path.name, f"FROM {source!a:.120} is an address on the network", remedy)
        return None
    local = _resolve(path, source)
    if local.exists():
        return local
    if source.startswith((".", "/", "~")) or source.endswith((".gguf", ".safetensors")):
        what = f"FROM {source!a:.120} leads to nothing"
        report.add("modelfile-from", path.name, what, "Write a path from the Modelfile's own directory")
    return None


def _resolve(path: Path, name: str) -> Path:
    name = name.strip('"')
    return path.parent / (Path(name).expanduser() if name.startswith("~/") else name.replace("\0", ""))


def _check_template(path: Path, commands: list[Command], report: Report, local: Path | None) -> None:
    template = next((command.value for command in commands if command.name == "TEMPLATE"), None)
    if template is None:
        if local is not None:
            remedy = "Let puna export write the Modelfile, or copy a TEMPLATE for Llama 3.1 into it"
            report.add("modelfile-template", path.name, "no TEMPLATE; expected Llama 3.1's format", remedy)
        return
    missing = [text for text in (*HEADERS, "<|eot_id|>") if text not in template]
    if missing:
        what = f"TEMPLATE without {', '.join(missing)}; expected Llama 3.1's headers and ends"
        report.add("template-differs", path.name, what, "Let puna export write the Modelfile")
    if BEGIN in template and _adds_begin(local):
        what = "TEMPLATE writes <|begin_of_text|>, and the runner adds it as well; expected it once"
        report.add("bos-doubled", path.name, what, "Remove <|begin_of_text|> from TEMPLATE")


def _adds_begin(local: Path | None) -> bool:
    """Tell whether the runner puts begin_of_text first: it does unless the GGUF file says no."""
    try:
        return (
            local is None
            or not local.is_file()
            or read_gguf(local).metadata.get("tokenizer.ggml.add_bos_token") is not False
        )
    except CheckpointError:
        return True


def _check_parameters(path: Path, commands: list[Command], report: Report, *, is_local: bool) -> None:
    values = [command.value.partition(" ") for command in commands if command.name == "PARAMETER"]
    stops = [_unquote(value.strip()) for name, _, value in values if name == "stop"]
    missing = [text for text in STOP_TEXTS if text not in stops]
    if missing and (is_local or stops):  # without any, a model that Ollama keeps brings its own
        lines = " and ".join(f'PARAMETER stop "{text}"' for text in missing)
        report.add("stop-incomplete", path.name, f"no stop for {listed(missing)}", f"Add {lines}")
    for name, _, value in values:
        if name == "num_ctx" and value.strip().isdecimal() and int(value.strip()[:12]) < MIN_CONTEXT:
            what = f"num_ctx {value.strip()[:12]}: what doesn't fit is dropped from the start, without a word"
            report.add("modelfile-context", path.name, what, f"Write at least {MIN_CONTEXT}, as much as memory allows")


def _unquote(text: str) -> str:
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text.strip('"')
