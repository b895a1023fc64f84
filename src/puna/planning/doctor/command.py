"""`puna doctor`: a Report -> lines for people, or JSON for programs, and an exit status."""

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
    """Say what is wrong with a checkpoint directory, GGUF file, adapter or Modelfile, and what to do.

    Ends with status 0 if nothing is wrong, 1 after warnings, 2 if something is broken.

    Parameters
    ----------
    path
        What to look at.
    base
        The checkpoint that an adapter belongs to.
    quick
        Leave out the weights' values and the hashes, which take as long as reading the files.
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
    """Print what was looked at, each finding with its remedy, and a line that sums up."""
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
    """Count the findings in a sentence."""
    counts = {severity: sum(each.severity == severity for each in report.findings) for severity in STYLES}
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
