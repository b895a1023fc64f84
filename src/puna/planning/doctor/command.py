"""`puna doctor`: a Report -> text or JSON, and an exit status."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from puna.pipeline.progress import printable
from puna.planning.doctor.report import Report

STYLES = {"broken": "bold red", "warning": "bold yellow"}


def doctor(
    path: Path,
    /,
    *,
    base: Path | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Check a checkpoint directory, GGUF file, adapter or Modelfile, and print problems with remedies.

    Exit status: 0 without findings, 1 with warnings only, 2 with broken parts.

    Parameters
    ----------
    path
        Checkpoint directory, adapter directory, GGUF file or Modelfile.
    base
        Base checkpoint of an adapter.
    quick
        Skip values of weights and hashes of files, which need a full read.
    as_json
        Print JSON instead of text.
    """
    from puna.planning.doctor.examine import examine

    report = examine(path, quick=quick, base=base, console=Console(stderr=True))
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report, Console(highlight=False))
    sys.exit(report.status)


def print_report(report: Report, console: Console) -> None:
    """Print facts, findings with remedies, and a summary line."""
    _print(console, f"{report.path}: {report.kind}")
    for label, fact in report.facts.items():
        _print(console, f"{label}: {fact}", indent="  ")
    for finding in sorted(report.findings, key=lambda finding: finding.severity):
        _print(console, "")
        _print(console, f"{finding.severity}: {finding.code} in {finding.where}", style=STYLES[finding.severity])
        _print(console, finding.seen, indent="  ")
        _print(console, f"-> {finding.remedy}", indent="  ")
    _print(console, "")
    _print(console, summary(report))


def summary(report: Report) -> str:
    """Return the numbers of findings by severity, or "nothing wrong"."""
    counts = {severity: sum(finding.severity == severity for finding in report.findings) for severity in STYLES}
    if not report.findings:
        return "nothing wrong"
    warnings = f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"
    return f"{counts['broken']} broken, {warnings}" if counts["broken"] else warnings


def _print(console: Console, text: str, *, indent: str = "", style: str | None = None) -> None:
    lines = textwrap.wrap(printable(text), max(40, console.width), initial_indent=indent, subsequent_indent=indent) or [
        ""
    ]
    for line in lines:
        console.print(line, style=style, markup=False, soft_wrap=True)
