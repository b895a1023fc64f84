"""Headings, paragraphs, tables, lists and pictures -> the same page in Markdown and in HTML.

Everything is text: nothing that a model, a file or a setting says becomes markup. The HTML loads nothing from anywhere.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #101828; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; padding: 1rem; border-radius: .5rem; color: #fff; }
h1.go { background: #1a7f37; } h1.no-go { background: #b42318; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .35rem .8rem; border-bottom: 1px solid #e4e7ec; vertical-align: top; }
th { background: #f9fafb; } pre { background: #f9fafb; padding: 1rem; overflow-x: auto; font-size: .85rem; }
svg { max-width: 100%; height: auto; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain words."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Lines:
    """Text whose white space counts."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """An SVG element that is a part of the HTML, and a file FILE beside the Markdown."""

    file: str
    title: str
    svg: str


Block = Heading | Paragraph | Items | Table | Lines | Picture


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Render a page as Markdown; its first line is the title."""
    return "\n\n".join([f"# {_flat(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_flat(text)}"
        case Paragraph(text):
            return _flat(text)
        case Items(lines):
            return "\n".join(f"- {_flat(line)}" for line in lines)
        case Table(columns, rows):
            cells = [[_flat(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
            first, *rest = (f"| {' | '.join(row)} |" for row in cells)
            return "\n".join([first, f"|{' --- |' * len(columns)}", *rest])
        case Lines(lines):
            return "\n".join(["```text", *(line.replace("```", "'''") for line in lines), "```"])
        case Picture(file, title, _):
            return f"![{_flat(title)}]({file})"


def _flat(text: str) -> str:
    """Put a text on one line and take the meaning from what Markdown would read as markup."""
    return re.sub(r"([\\`*\[\]<>]|(?<!\w)_|_(?!\w)|^[#+-](?=\s))", r"\\\1", " ".join(text.split()))


def to_html(title: str, blocks: Sequence[Block], *, is_go: bool) -> str:
    """Render a page as HTML that stands alone."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<h1 class="{"go" if is_go else "no-go"}">{escape(title)}</h1>',
            *map(_html, blocks),
            "</body></html>\n",
        ]
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Items(lines):
            return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        case Table(columns, rows):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in columns)
            body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
            return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
        case Lines(lines):
            return f"<pre>{escape(chr(10).join(lines))}</pre>"
        case Picture(_, _, svg):
            return f"<figure>{svg}</figure>"
