"""Data summary and estimate -> the preview in the terminal, preview.md and preview.json.

Trained tokens are shown in brackets; a terminal with colours shows them green and underlined.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.text import Text

from puna.pipeline.progress import printable
from puna.pipeline.units import show_bytes, show_count, show_duration
from puna.training.reports.preview.data_summary import DataSummary, Piece, ShownExample
from puna.training.reports.preview.estimate import Outcome, RunEstimate

OPENING, CLOSING, BETWEEN = "⟦", "⟧", "¦"
# A stretch of tokens, all trained or all not, is shortened to its first and last tokens.
SHOWN_FIRST, SHOWN_LAST, MAX_STRETCHES = 40, 16, 16
TRAINED_STYLES, OTHER_STYLES = ("green underline", "bright_green underline"), ("default", "bright_black")
SPECIAL_STYLE, MARK_STYLE = "cyan", "bold yellow"
BAR_WIDTH = 40


def render_example(example: ShownExample) -> Text:
    """Render an example token by token; long stretches are shortened in the middle."""
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


def data_lines(summary: DataSummary) -> Iterator[str]:
    """Describe the training data in sentences."""
    part = "all" if summary.is_whole else f"the first {summary.num_looked_at:,}"
    yield f"{summary.num_rows:,} rows, {part} of them read for this summary: {len(summary.lengths):,} examples"
    tokens = sum(summary.lengths)
    yield f"{tokens:,} tokens, {summary.num_trained:,} of them trained ({summary.trained_share:.1%})"
    if summary.is_cut:
        count = sum(length > summary.context for length in summary.lengths)
        yield f"{count:,} longer than the context of {summary.context:,} tokens, which are cut into pieces"
    else:
        yield f"{summary.num_too_long:,} rows too long for the context of {summary.context:,} tokens, which are skipped"
    if summary.num_untrained:
        yield f"{summary.num_untrained:,} examples without a trained token"
    yield f"the run: {summary.steps:,} steps, {'' if summary.is_whole else 'about '}{summary.tokens:,} tokens"


def histogram_lines(summary: DataSummary) -> Iterator[str]:
    """Render the histogram of lengths as bars."""
    counted = summary.histogram()
    most = max((count for _, _, count in counted), default=1) or 1
    for first, last, count in counted:
        bar = "█" * max(bool(count), round(BAR_WIDTH * count / most))
        yield f"{first:>7,} to {last:>7,} tokens {count:>7,} {bar}".rstrip()


def estimate_lines(estimate: RunEstimate) -> Iterator[str]:
    """Describe estimated memory, with its parts, and time."""
    share = estimate.trained_parameters / estimate.parameters
    yield f"{estimate.trained_parameters:,} parameters trained ({share:.2%} beside {estimate.parameters:,})"
    if estimate.held_bytes is not None and estimate.peak_bytes is not None:
        parts = {
            "gradients": estimate.gradients_bytes,
            "rounded weights": estimate.rounded_weights_bytes,
            "activations": estimate.activations_bytes,
            "logits": estimate.logits_bytes,
        }
        named = ", ".join(f"{name} {show_bytes(size)}" for name, size in parts.items() if size)
        yield f"memory: at most {show_bytes(estimate.peak_bytes)}"
        weights = f"including {show_bytes(estimate.weights_bytes)} of weights"
        yield f"  held before the first step {show_bytes(estimate.held_bytes)}, {weights}"
        yield f"  AdamW moments {show_bytes(estimate.moments_bytes)}"
        yield f"  a batch {show_bytes(estimate.batch_bytes)}; its parts, not all in memory at once: {named}"
        if estimate.kernel_bytes:
            yield f"  oneDNN kernels for batches of other shapes {show_bytes(estimate.kernel_bytes)}"
    rate = f"{show_count(estimate.tokens_per_second)} tokens/s"
    yield f"time: {show_duration(estimate.seconds)} at {rate}, the speed of the first batch on this machine"


def outcome_lines(estimate: RunEstimate, measured: Outcome) -> Iterator[str]:
    """Compare the estimate with the measured memory, time and speed."""
    if estimate.peak_bytes and measured.peak_bytes:
        figures = f"{show_bytes(estimate.peak_bytes)} foreseen, {show_bytes(measured.peak_bytes)} taken"
        yield f"memory: {figures}, {_deviation(estimate.peak_bytes, measured.peak_bytes, 'more', 'less')}"
    if estimate.seconds and measured.seconds:
        figures = f"{show_duration(estimate.seconds)} foreseen, {show_duration(measured.seconds)} taken"
        yield f"time: {figures}, {_deviation(estimate.seconds, measured.seconds, 'longer', 'shorter')}"
    if estimate.tokens_per_second and measured.tokens_per_second:
        figures = f"{show_count(estimate.tokens_per_second)} foreseen, {show_count(measured.tokens_per_second)} reached"
        deviation = _deviation(estimate.tokens_per_second, measured.tokens_per_second, "more", "fewer")
        yield f"tokens/s: {figures}, {deviation}"


def _deviation(foreseen: float, measured: float, above: str, below: str) -> str:
    """Describe the deviation from the estimate in percent: "40% more than foreseen"."""
    share = measured / foreseen - 1
    return f"{abs(share):.0%} {above if share > 0 else below} than foreseen" if round(share, 2) else "as foreseen"


def markdown(stage: str, summary: DataSummary, estimate: RunEstimate, measured: Outcome | None = None) -> str:
    """Render preview.md."""
    lines = [f"# {stage}: before the first step", "", "## What is trained on", ""]
    lines += [f"- {line}" for line in data_lines(summary)]
    lines += ["", "```text", *histogram_lines(summary), "```", ""]
    lines += ["## What it takes", "", *(f"- {line.strip()}" for line in estimate_lines(estimate)), ""]
    if measured:
        lines += ["## What it took", "", *(f"- {line}" for line in outcome_lines(estimate, measured)), ""]
    lines += [
        "## The first examples",
        "",
        f"Trained tokens stand in {OPENING}{CLOSING}, {BETWEEN} between two tokens.",
        "",
    ]
    for example in summary.shown:
        text = render_example(example).plain
        fence = "`" * max(3, 1 + max((len(run) for run in text.split() if set(run) == {"`"}), default=0))
        lines += [f"### {printable(example.place)}", "", f"{fence}text", text, fence, ""]
    return "\n".join(lines)


def as_json(summary: DataSummary, estimate: RunEstimate, measured: Outcome | None = None) -> str:
    """Render preview.json: data summary, estimate and, after the run, measurements."""
    surveyed = asdict(summary) | {"histogram": summary.histogram(), "trained_share": summary.trained_share}
    content = {"survey": surveyed, "forecast": asdict(estimate), "outcome": asdict(measured) if measured else None}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
