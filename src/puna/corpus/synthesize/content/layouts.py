"""Lines of a page -> text in a random layout, with or without remains of a web page (menu, footer)."""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

MENU_WORDS = (
    "Home",
    "About us",
    "News",
    "Contact",
    "Log in",
    "Search",
    "Products",
    "Services",
    "Team",
    "Events",
    "Jobs",
)
FOOTERS = (
    "© {year} {name}. All rights reserved.",
    "{name} | Imprint | Privacy",
    "Was this page helpful? Yes No",
    "Back to top",
    "Share this page: Mail Print",
    "Powered by {name}",
)
# Largest number of lines on a page, by layout.
MAX_LINES = {"bullets": 9, "prose": 8, "sections": 7, "answers": 5, "table": 9, "pairs": 9, "numbered": 8, "plain": 8}


class Line(NamedTuple):
    """A fact, worded for every layout.

    Example:
        >>> line = Line("Monday", "closed", "On Monday we are closed.", "Monday?", "We are closed.")
        >>> LAYOUTS["table"]([line], Random(0)).splitlines()[-1]
        '| Monday | closed |'
    """

    label: str
    value: str
    sentence: str
    question: str
    answer: str


def frame_page(title: str, paragraphs: Sequence[str], name: str, rng: Random) -> str:
    """Join a title and paragraphs; one page in five looks like a web page converted to text.

    Example:
        >>> frame_page("Hours", ["We open at nine."], "Belmar", Random(1)).splitlines()
        ['# Hours', '', 'We open at nine.']
    """
    if rng.random() < 0.8:
        heading = rng.choice(("# {}", "# {}", "# {}", "**{}**", "{}")).format(title)
        return "\n\n".join([heading, *paragraphs])
    menu = rng.sample(MENU_WORDS, rng.randrange(3, 7))
    top = rng.choice(
        (" | ".join(menu), "\n".join(menu), " > ".join(["Home", title]), "Skip to content\n" + " ".join(menu))
    )
    foot = "\n".join(rng.sample(FOOTERS, rng.randrange(1, 3))).format(name=name, year=rng.randrange(2005, 2030))
    gap = rng.choice(("\n\n", "\n"))
    return gap.join([top, title, *paragraphs, foot])


def _bullets(lines: Sequence[Line], rng: Random) -> str:
    mark, strong = rng.choice(("-", "-", "*")), rng.choice(("{}:", "{}:", "**{}**:"))
    return "\n".join(f"{mark} {strong.format(line.label)} {line.value}" for line in lines)


def _numbered(lines: Sequence[Line], rng: Random) -> str:
    return "\n".join(f"{number}. {line.sentence}" for number, line in enumerate(lines, 1))


def _pairs(lines: Sequence[Line], rng: Random) -> str:
    between = rng.choice((": ", ": ", " - ", " = "))
    return "\n".join(f"{line.label}{between}{line.value}" for line in lines)


def _plain(lines: Sequence[Line], rng: Random) -> str:
    return "\n".join(f"{line.label}\n{line.value}" for line in lines)


def _table(lines: Sequence[Line], rng: Random) -> str:
    head = rng.choice((("What", "Detail"), ("Item", "Value"), ("Subject", "Answer"), ("", "")))
    rows = [f"| {line.label} | {line.value} |" for line in lines]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *rows])


def _prose(lines: Sequence[Line], rng: Random) -> str:
    sentences = [line.sentence for line in lines]
    half = (len(sentences) + 1) // 2
    return (" ".join(sentences[:half]) + "\n\n" + " ".join(sentences[half:])).strip()


def _sections(lines: Sequence[Line], rng: Random) -> str:
    heading = rng.choice(("## {}\n", "## {}\n", "### {}\n\n", "**{}**\n"))
    return "\n\n".join(heading.format(line.label) + line.sentence for line in lines)


def _answers(lines: Sequence[Line], rng: Random) -> str:
    form = rng.choice(("Q: {}\nA: {}", "Q: {}\nA: {}", "**{}**\n{}", "{}\n{}"))
    return "\n\n".join(form.format(line.question, line.answer) for line in lines)


LAYOUTS: dict[str, Callable[[Sequence[Line], Random], str]] = {
    "bullets": _bullets,
    "prose": _prose,
    "sections": _sections,
    "answers": _answers,
    "table": _table,
    "pairs": _pairs,
    "numbered": _numbered,
    "plain": _plain,
}
