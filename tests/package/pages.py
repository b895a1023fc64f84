"""The pages of the documentation as tests read them: links, shell commands, Python blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Pages written by docs/generate.py into the site, without a file in the repository.
GENERATED = {ROOT / "docs" / "reference" / name for name in ("cli.md", "settings.md")}
# Records of the past: their commands were right when they were written.
RECORDS = {ROOT / "docs" / "log.md", *(ROOT / "docs" / "results").glob("*.md")}
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [*TOP, ROOT / "examples" / "README.md", ROOT / "findings" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
INLINE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^()\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield target and anchor of every link to a file of the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(INLINE.sub("", text)):
        if ":" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts and the site derive them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


def shell_blocks(page: Path) -> Iterator[str]:
    """Yield the shell blocks of a page: indented lines below an empty one, of which the first is a command."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"(?:\A|\n)\n((?: {4,}\S.*\n)+)", text):
        if re.match(r"\s+(puna|make|mkdir|git|pip) ", block):
            yield "\n".join(line.strip() for line in block.splitlines())
    yield from re.findall(r"```(?:sh|bash|shell)\n(.*?)```", text, flags=re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `puna` command of a page, without comments."""
    for block in shell_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words[:1] == ["puna"]:
                    yield words[1:]


def python_blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page, which continue one another."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
