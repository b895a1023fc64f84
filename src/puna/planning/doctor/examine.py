"""A path -> Report: decides what lies there and calls the checks for it. Never raises for what it is given."""

from pathlib import Path

from rich.console import Console

from puna.formats.checkpoint.gguf.container import is_gguf
from puna.model.kernels.build import find_compiler
from puna.planning.doctor.adapter import check_adapter
from puna.planning.doctor.gguf import check_gguf
from puna.planning.doctor.hf.check import check_directory
from puna.planning.doctor.modelfile import check_modelfile
from puna.planning.doctor.report import Report

MARKS = ("config.json", "tokenizer.json", "tokenizer.model", "model.safetensors.index.json")


def examine(path: Path, *, quick: bool = False, base: Path | None = None, console: Console | None = None) -> Report:
    """Return all that is wrong at `path`; `base` is the model that an adapter belongs to, where it is known."""
    report = Report(path)
    if find_compiler() is None:
        report.facts["kernels"] = "no C++ compiler on this machine: torch runs models instead, more slowly"
    console = console or Console(quiet=True)
    with report.attempt("file-unreadable", str(path)):
        report.kind = _kind_of(path)
        if base is not None and report.kind != "adapter":
            report.facts["base"] = f"{base} is left aside: only an adapter has one"
        if report.kind == "missing":
            report.add("path-missing", str(path), "nothing is here; expected a model", "Check the path")
        elif report.kind == "Meta":
            remedy = "Take it in with `puna import`, which reads pickles in a confined process; then look at the result"
            report.add("path-pickled", str(path), "Meta's own format, whose weights are pickled", remedy)
        elif report.kind == "unknown":
            report.add("path-unknown", str(path), "no model that Puna knows", _where_to_look(path))
        elif report.kind == "checkpoint":
            check_directory(path, report, console, quick=quick)
        elif report.kind == "adapter":
            check_adapter(path, report, console, quick=quick, base=base)
        elif report.kind == "GGUF":
            check_gguf(path, report, console, quick=quick)
        elif report.kind == "Modelfile":
            check_modelfile(path, report)
    return report


def _kind_of(path: Path) -> str:
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if "adapter_config.json" in names or any(name.startswith("adapter_model.") for name in names):
            return "adapter"
        if "params.json" in names and "config.json" not in names:
            return "Meta"
        known = names & set(MARKS) or any(name.endswith((".safetensors", ".bin", ".pth")) for name in names)
        return "checkpoint" if known else "unknown"
    if not path.exists():
        return "missing"
    if not path.is_file():
        return "unknown"
    if path.name.lower().endswith("modelfile") or path.name.lower().startswith("modelfile"):
        return "Modelfile"
    return "GGUF" if is_gguf(path) else "unknown"


def _where_to_look(path: Path) -> str:
    """Name the model inside a directory, or the directory around a file, if there is one."""
    known = "a checkpoint directory, a .gguf file, an adapter's directory or a Modelfile"
    if path.is_dir():
        inside = sorted(each for each in path.iterdir() if each.is_file() and _kind_of(each) in ("Modelfile", "GGUF"))
        return f"Name the file: {inside[0]}" if inside else f"Name {known}"
    around = path.is_file() and _kind_of(path.parent) in ("adapter", "checkpoint", "Meta")
    return f"Name its directory: {path.parent}" if around else f"Name {known}"
