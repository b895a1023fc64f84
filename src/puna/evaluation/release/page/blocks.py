"""Headings, paragraphs, tables, folds, conversations and pictures -> the same page in Markdown and in HTML.

Everything is text: words of a model, a file or a setting never become markup. The HTML loads no resources and runs no
script.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from puna.evaluation.release.page.style import POLICY, STYLE

Verdict = Literal["right", "partly right", "wrong", "not judged"]

# Control characters, characters that override the text direction, and halves of surrogate pairs.
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# A text of more than FOLDED characters is cut after SHOWN characters; a fold holds the rest.
FOLDED, SHOWN = 700, 450


@dataclass(frozen=True)
class Heading:
    """A heading of a section.

    Example:
        >>> to_markdown("A page", [Heading("Scores")]).splitlines()[-1]
        '## Scores'
    """

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain words.

    Example:
        >>> to_markdown("A page", [Paragraph("We open at nine.")]).splitlines()[-1]
        'We open at nine.'
    """

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences.

    Example:
        >>> to_markdown("A page", [Items(["size", "speed"])]).splitlines()[-2:]
        ['- size', '- speed']
    """

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Example:
        >>> to_markdown("A page", [Table(["model", "score"], [["mine", "90.0 %"]])]).splitlines()[-1]
        '| mine | 90.0 % |'
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Lines:
    """Text with significant white space.

    Example:
        >>> to_markdown("A page", [Lines(["a", "  b"])]).splitlines()[-3:-1]
        ['a', '  b']
    """

    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """An SVG element: inline in the HTML, and the separate file `file` beside the Markdown.

    Example:
        >>> pictures([Picture("scores.svg", "Scores", "<svg></svg>")])[0].title
        'Scores'
    """

    file: str
    title: str
    svg: str


@dataclass(frozen=True)
class Quote:
    """A labelled quotation, for example a question. The HTML folds a long text after the beginning.

    Example:
        >>> Quote("Question", "When do you open?").label
        'Question'
    """

    label: str
    text: str


@dataclass(frozen=True)
class Answer:
    """One column of SideBySide: an answer, the verdict and the reason for the verdict.

    Example:
        >>> Answer("this model", "At nine.", "right").verdict
        'right'
    """

    name: str
    text: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Answers of several models to a question, in columns.

    Example:
        >>> answers = [Answer("this model", "At nine.", "right"), Answer("the teacher", "At ten.", "wrong")]
        >>> [answer.name for answer in SideBySide(answers).answers]
        ['this model', 'the teacher']
    """

    answers: Sequence[Answer]


@dataclass(frozen=True)
class Details:
    """Blocks in a fold with a summary. Folds may lie in folds.

    Example:
        >>> to_markdown("GO", [Details("Measurement", [Paragraph("Once.")])]).splitlines()[2]
        '<details><summary>Measurement</summary>'
    """

    summary: str
    blocks: Sequence["Block"]
    is_open: bool = False


Block = Heading | Paragraph | Items | Table | Lines | Picture | Quote | SideBySide | Details


def pictures(blocks: Sequence[Block]) -> list[Picture]:
    """Return the pictures among the blocks, pictures in folds included.

    Example:
        >>> [picture.file for picture in pictures([Details("More", [Picture("scores.svg", "Scores", "<svg></svg>")])])]
        ['scores.svg']
    """
    collected: list[Picture] = []
    for block in blocks:
        collected += [block] if isinstance(block, Picture) else []
        collected += pictures(block.blocks) if isinstance(block, Details) else []
    return collected


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Render a page as Markdown; the first line is the title.

    Example:
        >>> to_markdown("A page", [Paragraph("We open at nine.")]).splitlines()[0]
        '# A page'
    """
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
            return _markdown_table(columns, rows)
        case Lines(lines):
            return "\n".join(["```text", *(_clean(line).replace("```", "'''") for line in lines), "```"])
        case Picture(file, title, _):
            return f"![{_flat(title)}]({file})"
        case Quote(label, text):
            return f"{_flat(label)}:\n\n{_markdown(Lines(text.splitlines() or ['(nothing)']))}"
        case SideBySide(answers):
            verdicts = [f"{each.verdict}: {each.reason}" if each.reason else each.verdict for each in answers]
            texts = [each.text or "(nothing)" for each in answers]
            return _markdown_table([each.name for each in answers], [verdicts, texts])
        case Details(summary, inner, is_open):
            tag = "<details open>" if is_open else "<details>"
            body = "\n\n".join(map(_markdown, inner))
            # HTML inside Markdown shows backslashes, so entities escape characters with a meaning in markup.
            line = re.sub(r"[\\`*\[\]_]", lambda match: f"&#{ord(match[0])};", _text(" ".join(summary.split())))
            return f"{tag}<summary>{line}</summary>\n\n{body}\n\n</details>"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[_flat(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    first, *rest = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, f"|{' --- |' * len(columns)}", *rest])


def _flat(text: str) -> str:
    """Put a text on a single line and escape the markup characters of Markdown."""
    return re.sub(r"([\\`*\[\]<>]|(?<!\w)_|_(?!\w)|^[#+-](?=\s))", r"\\\1", " ".join(_clean(text).split()))


def _clean(text: str) -> str:
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def to_html(title: str, blocks: Sequence[Block], *, is_go: bool) -> str:
    """Render a page as self-contained HTML.

    Example:
        >>> "<p>1 &lt; 2</p>" in to_html("A page", [Paragraph("1 < 2")], is_go=True)
        True
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>",
            f'<h1 class="{"go" if is_go else "no-go"}">{_text(title)}</h1>',
            *map(_html, blocks),
            "</body></html>\n",
        ]
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_text(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_text(text)}</p>"
        case Items(lines):
            return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"
        case Table(columns, rows):
            head = "".join(f"<th>{_text(cell)}</th>" for cell in columns)
            body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
            return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
        case Lines(lines):
            return f"<pre>{_text(chr(10).join(lines))}</pre>"
        case Picture(_, _, svg):
            return f"<figure>{svg}</figure>"
        case Quote(label, text):
            return f'<div class="quote"><b>{_text(label)}</b>{_long(text)}</div>'
        case SideBySide(answers):
            return f'<div class="answers">{"".join(map(_answer, answers))}</div>'
        case Details(summary, inner, is_open):
            body = "\n".join(map(_html, inner))
            return f"<details{' open' * is_open}><summary>{_text(summary)}</summary>\n{body}\n</details>"


def _answer(answer: Answer) -> str:
    verdict = f"{answer.verdict}: {answer.reason}" if answer.reason else answer.verdict
    return (
        f'<section class="{answer.verdict.replace(" ", "-")}"><h4>{_text(answer.name)}</h4>'
        f'<p class="verdict">{_text(verdict)}</p>{_long(answer.text)}</section>'
    )


def _long(text: str) -> str:
    """Show a text as written; of a long text show the beginning, and the rest in a fold."""
    if len(text) <= FOLDED:
        return f'<div class="text" dir="auto">{_text(text) if text.strip() else "<i>(nothing)</i>"}</div>'
    rest = f"{len(text) - SHOWN:,} more characters"
    return (
        f'<div class="text" dir="auto">{_text(text[:SHOWN])}…</div>'
        f'<details><summary>{rest}</summary><div class="text" dir="auto">…{_text(text[SHOWN:])}</div></details>'
    )


def _text(text: str) -> str:
    return escape(_clean(text))
