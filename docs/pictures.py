"""Draw the pictures of the documentation from real output of the demo.

    puna raise recipes/demo.toml | tee build/demo.txt
    python docs/pictures.py build/demo.txt build/demo

The pictures name fonts of the reader's machine and load nothing.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from puna.pipeline.artifacts.lineage import print_lineage

ROOT = Path(__file__).parents[1]
WIDTH = 100
# rich's frame for SVG without its fonts from another host.
FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main(output: Path, folder: Path) -> None:
    """Draw the scores and the verdict that the demo printed, and the lineage of the demo's model."""
    printed = output.read_text(encoding="utf-8").splitlines()
    first = max(number for number, line in enumerate(printed) if "scores in %" in line)
    last = max(number for number, line in enumerate(printed) if "puna promote" in line)
    draw("demo", "puna raise recipes/demo.toml", ["...", *printed[first : last + 1]])
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    print_lineage(folder / "quantize", console)
    lineage = console.export_text().replace(f"{folder}/", "build/demo/")
    draw("lineage", "puna lineage build/demo/quantize", lineage.splitlines())


def draw(name: str, command: str, lines: list[str]) -> None:
    """Write docs/start/NAME.svg with a command and lines of its output."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold green"))
    for line in lines:
        console.print(Text(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()), crop=True, no_wrap=True)
    picture = console.export_svg(title="Puna", code_format=FRAME, unique_id=name)
    (ROOT / "docs" / "start" / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
