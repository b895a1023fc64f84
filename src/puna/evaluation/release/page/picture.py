"""Means with intervals -> an inline SVG picture. Needs no library and no font."""

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, ROW_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 46, 14, 14, 30, 40
GOOD, BAD, PLAIN = "#1a7f37", "#b42318", "#475467"
MAX_LABEL = 60
DASHES = 'stroke-dasharray="3 2"'


class Mark(NamedTuple):
    """One line of a picture. The whole interval should lie to the right of `limit`, a dashed mark.

    Example:
        >>> Mark("than the base: +5.0", mean=5.0, low=2.0, high=8.0, limit=0.0).limit
        0.0
    """

    label: str
    mean: float
    low: float
    high: float
    limit: float | None = None
    color: str = PLAIN


def draw_intervals(marks: Sequence[Mark], *, title: str, axis: str, span: tuple[float, float]) -> str:
    """Return an SVG element with one line per mark, over an axis from span[0] to span[1].

    Example:
        >>> mark = Mark("than the base", mean=5.0, low=2.0, high=8.0)
        >>> draw_intervals([mark], title="Lead", axis="points", span=(-10, 10)).startswith("<svg")
        True
    """
    height = TOP + ROW_HEIGHT * len(marks) + BOTTOM
    bottom = height - BOTTOM

    def x_of(value: float) -> float:
        inside = min(max(value, span[0]), span[1])
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (inside - span[0]) / (span[1] - span[0]), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for value in _ticks(*span):
        x = x_of(value)
        color = "#98a2b3" if value == 0 else "#e4e7ec"
        parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}" stroke="{color}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle" fill="#475467">{value:g}</text>')
    for number, mark in enumerate(marks):
        parts += _line(mark, TOP + ROW_HEIGHT * (number + 0.5), x_of)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 4}" text-anchor="middle" fill="#475467">{escape(axis)}</text>')
    return "\n".join([*parts, "</svg>"])


def _line(mark: Mark, y: float, x_of: Callable[[float], float]) -> list[str]:
    """Draw the label above the line, readable on a narrow screen."""
    x, low, high = x_of(mark.mean), x_of(mark.low), x_of(mark.high)
    label = mark.label if len(mark.label) <= MAX_LABEL else f"{mark.label[: MAX_LABEL - 1]}…"
    limit_x = None if mark.limit is None else x_of(mark.limit)
    limit = (
        f'<line x1="{limit_x}" y1="{y - 8}" x2="{limit_x}" y2="{y + 16}" stroke="#101828" stroke-width="2" {DASHES}/>'
    )
    return [
        f'<text x="{LEFT + 5}" y="{y - 6}" fill="#101828">{escape(label)}</text>',
        f'<line x1="{low}" y1="{y + 6}" x2="{high}" y2="{y + 6}" stroke="{mark.color}" stroke-width="3"/>',
        f'<circle cx="{x}" cy="{y + 6}" r="5" fill="{mark.color}"/>',
        *(f'<line x1="{end}" y1="{y}" x2="{end}" y2="{y + 12}" stroke="{mark.color}"/>' for end in (low, high)),
        *([] if limit_x is None else [limit]),
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers over the span, about five of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100) if (high - low) / step <= 8)
    first = -(-low // step) * step
    return [first + step * number for number in range(int((high - first) // step) + 1)]
