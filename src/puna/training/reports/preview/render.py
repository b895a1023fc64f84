"""A survey and a forecast -> what people read before a run, in the terminal and as preview.md, and what programs do.

Trained tokens stand in brackets everywhere, and are green and underlined where there are colours.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.text import Text

from puna.pipeline.progress import printable
from puna.pipeline.units import show_bytes, show_count, show_duration
from puna.training.reports.preview.data_summary import Piece, ShownExample, Survey
from puna.training.reports.preview.estimate import Forecast, Outcome

OPENING, CLOSING, BETWEEN = "⟦", "⟧", "¦"
# Of a stretch of tokens that are all trained or all not, what is shown: its beginning and its end.
SHOWN_FIRST, SHOWN_LAST, MAX_STRETCHES = 40, 16, 16
TRAINED_STYLES, OTHER_STYLES = ("green underline", "bright_green underline"), ("default", "bright_black")
SPECIAL_STYLE, MARK_STYLE = "cyan", "bold yellow"
BAR_WIDTH = 40


def render_example(example: ShownExample) -> Text:
    """Write an example token by token; long stretches are elided in the middle."""
    text = Text()
    stretches = list(_stretches(example.pieces))
    for number, stretch in enumerate(stretches):
        if len(stretches) > MAX_STRETCHES and MAX_STRETCHES // 2 <= number < len(stretches) - MAX_STRETCHES // 2:
            if number == MAX_STRETCHES // 2:
                text.append(f" … {len(stretches) - MAX_STRETCHES} stretches … ", MARK_STYLE)
            continue
        is_trained = stretch[0].is_trained
        text.append(OPENING if is_trained else "", MARK_STYLE)
        _append_stretch(text, stretch, TRAINED_STYLES if is_trained else OTHER_STYLES)
        text.append(CLOSING if is_trained else "", MARK_STYLE)
    return text


def _stretches(pieces: tuple[Piece, ...]) -> Iterator[list[Piece]]:
    stretch: list[Piece] = []
    for piece in pieces:
        if stretch and stretch[-1].is_trained != piece.is_trained:
            yield stretch
            stretch = []
        stretch.append(piece)
    if stretch:
        yield stretch


def _append_stretch(text: Text, stretch: list[Piece], styles: tuple[str, str]) -> None:
    is_long = len(stretch) > SHOWN_FIRST + SHOWN_LAST
    for index, piece in enumerate(stretch):
        if is_long and SHOWN_FIRST <= index < len(stretch) - SHOWN_LAST:
            if index == SHOWN_FIRST:
                text.append(f" … {len(stretch) - SHOWN_FIRST - SHOWN_LAST} tokens … ", MARK_STYLE)
            continue
        style = styles[index % 2]
        shown = printable(piece.text).replace("\n", "↵\n")
        text.append(shown, f"{SPECIAL_STYLE} underline" if piece.is_special and piece.is_trained else style)
        text.append(BETWEEN if index + 1 < len(stretch) and not shown.endswith("\n") else "", "bright_black")


def data_lines(found: Survey) -> Iterator[str]:
    """Say in sentences what will be trained on."""
    part = "all" if found.is_whole else f"the first {found.num_looked_at:,}"
    yield f"{found.num_rows:,} rows, {part} of them looked at: {len(found.lengths):,} examples"
    tokens = sum(found.lengths)
    yield f"{tokens:,} tokens, {found.num_trained:,} of them trained ({found.trained_share:.1%})"
    if found.is_cut:
        count = sum(length > found.context for length in found.lengths)
        yield f"{count:,} longer than the context of {found.context:,} tokens: they are cut into pieces"
    else:
        yield f"{found.num_too_long:,} rows too long for the context of {found.context:,} tokens: they are passed over"
    if found.num_untrained:
        yield f"{found.num_untrained:,} examples without a trained token"
    yield f"the run: {found.steps:,} steps, {'' if found.is_whole else 'about '}{found.tokens:,} tokens"


def histogram_lines(found: Survey) -> Iterator[str]:
    """Draw the lengths as bars."""
    counted = found.histogram()
    most = max((count for _, _, count in counted), default=1) or 1
    for first, last, count in counted:
        bar = "█" * max(bool(count), round(BAR_WIDTH * count / most))
        yield f"{first:>7,} to {last:>7,} tokens {count:>7,} {bar}".rstrip()


def forecast_lines(made: Forecast) -> Iterator[str]:
    """Say what a run will take, and of what the memory consists."""
    share = made.trained_parameters / made.parameters
    yield f"{made.trained_parameters:,} parameters trained ({share:.2%} beside {made.parameters:,})"
    if made.held_bytes is not None and made.peak_bytes is not None:
        parts = {
            "gradients": made.gradients_bytes,
            "rounded weights": made.rounded_weights_bytes,
            "activations": made.activations_bytes,
            "logits": made.logits_bytes,
        }
        named = ", ".join(f"{name} {show_bytes(size)}" for name, size in parts.items() if size)
        yield f"memory: at most {show_bytes(made.peak_bytes)}"
        weights = f"the weights' {show_bytes(made.weights_bytes)} among it"
        yield f"  held before the first step {show_bytes(made.held_bytes)}, {weights}"
        yield f"  moments of the optimizer {show_bytes(made.moments_bytes)}"
        yield f"  a batch {show_bytes(made.batch_bytes)}; in it, not all at once: {named}"
        if made.kernel_bytes:
            yield f"  products that oneDNN will compile for other shapes of a batch {show_bytes(made.kernel_bytes)}"
    rate = f"{show_count(made.tokens_per_second)} tokens/s"
    yield f"time: {show_duration(made.seconds)} at {rate}, as the first batch took on this machine"


def outcome_lines(made: Forecast, taken: Outcome) -> Iterator[str]:
    """Compare what was said before with what came."""
    if made.peak_bytes and taken.peak_bytes:
        said = f"{show_bytes(made.peak_bytes)} foreseen, {show_bytes(taken.peak_bytes)} taken"
        yield f"memory: {said}, {_deviation(made.peak_bytes, taken.peak_bytes, 'more', 'less')}"
    if made.seconds and taken.seconds:
        said = f"{show_duration(made.seconds)} foreseen, {show_duration(taken.seconds)} taken"
        yield f"time: {said}, {_deviation(made.seconds, taken.seconds, 'longer', 'shorter')}"
    if made.tokens_per_second and taken.tokens_per_second:
        said = f"{show_count(made.tokens_per_second)} foreseen, {show_count(taken.tokens_per_second)} reached"
        yield f"tokens/s: {said}, {_deviation(made.tokens_per_second, taken.tokens_per_second, 'more', 'fewer')}"


def _deviation(foreseen: float, taken: float, above: str, below: str) -> str:
    """Say in words by which share of the forecast the outcome lies above or below it: "40% more than foreseen"."""
    share = taken / foreseen - 1
    return f"{abs(share):.0%} {above if share > 0 else below} than foreseen" if round(share, 2) else "as foreseen"


def markdown(stage: str, found: Survey, made: Forecast, taken: Outcome | None = None) -> str:
    """Write the page that stays with a run."""
    lines = [f"# {stage}: before the first step", "", "## What is trained on", ""]
    lines += [f"- {line}" for line in data_lines(found)]
    lines += ["", "```text", *histogram_lines(found), "```", ""]
    lines += ["## What it takes", "", *(f"- {line.strip()}" for line in forecast_lines(made)), ""]
    if taken:
        lines += ["## What it took", "", *(f"- {line}" for line in outcome_lines(made, taken)), ""]
    lines += [
        "## The first examples",
        "",
        f"Trained tokens stand in {OPENING}{CLOSING}, {BETWEEN} between two tokens.",
        "",
    ]
    for example in found.shown:
        text = render_example(example).plain
        fence = "`" * max(3, 1 + max((len(run) for run in text.split() if set(run) == {"`"}), default=0))
        lines += [f"### {printable(example.place)}", "", f"{fence}text", text, fence, ""]
    return "\n".join(lines)


def as_json(found: Survey, made: Forecast, taken: Outcome | None = None) -> str:
    """Write the same as data: the survey, the forecast and, afterwards, the outcome."""
    surveyed = asdict(found) | {"histogram": found.histogram(), "trained_share": found.trained_share}
    told = {"survey": surveyed, "forecast": asdict(made), "outcome": asdict(taken) if taken else None}
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"
