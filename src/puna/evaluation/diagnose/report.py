"""Record and findings of a training run -> run_report.md. The plot is a separate file, loss.png."""

from collections.abc import Sequence

from puna.evaluation.diagnose.reasons import REASONS
from puna.evaluation.diagnose.record import Record
from puna.pipeline.artifacts import artifact
from puna.pipeline.finding import Finding

REPORT = artifact.RECORD_PREFIX + "report.md"
# Name in metrics.jsonl -> label of a row in the table of figures.
FIGURES = {
    "loss": "loss",
    "kl_loss": "divergence from the teacher",
    "token_loss": "loss on the text's own tokens",
    "teacher_loss": "the teacher's loss on the same tokens",
    "validation_loss": "validation loss",
    "entropy": "entropy of the model, nats",
    "teacher_entropy": "entropy of the teacher, nats",
    "label_entropy": "entropy of the labels at the temperature, nats",
    "tail_mass": "probability outside the stored labels",
    "aligned_share": "share of tokens in aligned spans",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
}


def run_report(record: Record, findings: Sequence[Finding]) -> str:
    """Return the report: amount of training, figures of the first and the last tenth of the run, and findings."""
    rows = [f"| {label} | {_figure(record, name, 0.0, 0.1)} | {_figure(record, name, 0.9, 1.0)} |"
            for name, label in FIGURES.items() if record.has(name)]  # fmt: skip
    sections = [
        f"# Training: {record.stage}",
        _extent(record),
        "\n".join(["| | first tenth | last tenth |", "| --- | ---: | ---: |", *rows]),
        "![losses, learning rate, gradient norm and entropy](loss.png)",
        "## What stands out",
        *(tell(findings) if findings else ["Nothing: no rule found a cause for trouble in these figures."]),
    ]
    return "\n\n".join(sections) + "\n"


def tell(findings: Sequence[Finding]) -> list[str]:
    """Return one list item in Markdown per finding: observation, reason and remedy."""
    return [f"- **{each.code}.** {each.seen}\n  {REASONS[each.code]}\n  *{each.remedy}*" for each in findings]


def _figure(record: Record, name: str, first: float, last: float) -> str:
    mean = record.mean(name, first, last)
    return "" if mean is None else f"{mean:.4g}"


def _extent(record: Record) -> str:
    facts, tokens = record.facts, int(record.rows[-1].get("tokens") or 0)
    parts = [f"{record.num_steps:,} steps", f"{tokens:,} tokens"]
    trained, ends, formatting = (record.total(name) for name in ("trained", "ends", "formatting"))
    if trained is not None:
        parts.append(f"{trained:,.0f} of them trained ({trained / max(1, tokens):.1%})")
    if trained and ends is not None and formatting is not None:
        parts.append(f"of which {formatting / trained:.1%} special tokens or white space, {ends:,.0f} ends of messages")
    if "num_rows" in facts:
        parts.append(f"{facts['num_rows']:,} rows read {facts['epochs']:.2f} times")
    if facts.get("start_data_loss_after") is not None:
        before, after = facts["start_data_loss"], facts["start_data_loss_after"]
        parts.append(f"loss on the start model's data {before:.3f} before, {after:.3f} after")
    if facts.get("chat_after") is not None:
        before, after = facts["chat"]["end"], facts["chat_after"]["end"]
        parts.append(f"probability that a finished answer ends {before:.2g} before, {after:.2g} after")
    return "; ".join(parts) + "."
