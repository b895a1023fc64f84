"""Scores -> a table in the terminal, a Markdown report and a picture. Other files compute the scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from puna.evaluation.evaluate.exam import null_table
from puna.evaluation.evaluate.judges.agreement import Agreement
from puna.evaluation.evaluate.slices import UNJUDGED
from puna.evaluation.scores import OVERALL, EvaluatedModel, conversations_name, is_judged

FAILURES_SHOWN = 3
HOW = (
    "Intervals are 95 %, at the effective number of questions if questions come in groups. Up to 60 questions they are "
    "exact; above, Wilson's interval is used for scores and Tango's for paired differences. Size is the size of the "
    "weights on disk. Tokens/s are generated tokens per second in this evaluation, with many questions at a time; the "
    "time for reading the prompts counts."
)

NULLS = (
    "A null model knows nothing of the task. The score of a checkpoint means something only clearly above all null "
    "models. Otherwise ask more questions with different right answers, and judge the content of the answers."
)


def print_scores(scores: dict[str, Any], everyone: Sequence[EvaluatedModel], console: Console) -> None:
    """Print a table with a row per model, then a table with a row per slice."""
    first = everyone[0].name
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"scores in %, 95 % intervals: {_extent(scores, first)}")
    columns = ["checkpoint", "score", *([f"against {first}"] if len(everyone) > 1 else []), "size", "tokens/s"]
    for column in columns:
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for cells in _summary(scores, everyone):
        table.add_row(*cells)
    console.print(table)
    names = _slice_names(scores, first)
    if len(names) > 1:
        parts = Table("of which", "n", *(answers.name for answers in everyone), box=box.SIMPLE_HEAD)
        for name in names:
            entries = [scores["checkpoints"][answers.name][name] for answers in everyone]
            parts.add_row(name, f"{entries[0]['n']:,}", *(f"{entry['score']:.1%}" for entry in entries))
        console.print(parts)


def judge_section(judged_by: dict[str, Any]) -> str:
    """Return the section of report.md about the judge or reward model of judge.json; "" without a judge.

    Example:
        >>> judge_section({})
        ''
        >>> judge_section({"judged_by": "reward", "judge": "reward", "agreement": None})
        'The reward model `reward` was compared with no human label.'
    """
    if not judged_by:
        return ""
    is_judge = judged_by["judged_by"] == "judge"
    name = f"{'The judge' if is_judge else 'The reward model'} {_quote(judged_by['judge'])}"
    agreement = judged_by["agreement"] and Agreement(**judged_by["agreement"])
    lines = [f"{name} {agreement}." if agreement else f"{name} was compared with no human label."]
    if is_judge:
        lines.append(f"At least {judged_by['min_agreement']:.0%} is required.")
        undecided = [f"{count:,} of {name}" for name, count in judged_by["undecided"].items() if count]
        lines += [f"Undecided, counted as wrong: {', '.join(undecided)}."] if undecided else []
        lines.append(f"Its rubric: {judged_by['rubric']}")
    return " ".join(lines)


def report(
    scores: dict[str, Any], everyone: Sequence[EvaluatedModel], nulls: Sequence[dict[str, Any]], judge: str = ""
) -> str:
    """Return report.md: tables with all intervals, null models, and examples of wrong answers of every model."""
    first = everyone[0].name
    columns = ["checkpoint", "score %", *([f"against {first}"] if len(everyone) > 1 else []), "size", "tokens/s"]
    sections = ["# Scores", _extent(scores, first) + ".", _markdown_table(columns, _summary(scores, everyone)), HOW]
    if judge:
        sections += ["## Judge of answers in words", judge]
    names = [answers.name for answers in everyone]
    rows = [
        [name, f"{scores['checkpoints'][first][name]['n']:,}"]
        + [_interval(scores["checkpoints"][checkpoint][name], "score") for checkpoint in names]
        for name in _slice_names(scores, first)
    ]
    sections += ["## By kind", _markdown_table(["kind", "n", *names], rows)]
    sections += ["## Null models", NULLS, _markdown_table(["a model that", "score %"], null_table(nulls))]
    if scores["differences"]:
        sections += ["## Differences in points, paired by question", _differences(scores)]
    if scores["similarity"]:
        means = [f"{name} {entry['mean']:.2f} (n = {entry['n']:,})" for name, entry in scores["similarity"].items()]
        sections += ["## Similarity to the references", f"chrF, 0 to 1, for information: {', '.join(means)}."]
    for answers in everyone:
        sections += [f"## Wrong answers of {answers.name}", *_failures(answers)]
    return "\n\n".join(sections) + "\n"


def draw_scores(scores: dict[str, Any], path: Path) -> bool:
    """Draw a PNG with score and interval of every slice and model; return False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    checkpoints = scores["checkpoints"]
    slices = list(next(iter(checkpoints.values())))
    figure = Figure(figsize=(7, 1.2 + 0.25 * len(slices) * (len(checkpoints) + 1)), layout="constrained")
    axes = figure.add_subplot(xlabel="score in %, with 95 % interval", xlim=(-2, 102))
    for index, (name, entries) in enumerate(checkpoints.items()):
        offset = 0.8 * ((index + 0.5) / len(checkpoints) - 0.5)
        middle, low, high = (
            100 * np.array([entries[part][key] for part in slices]) for key in ("score", "low", "high")
        )
        heights = np.arange(len(slices)) + offset
        axes.errorbar(middle, heights, xerr=(middle - low, high - middle), fmt="o", capsize=3, markersize=4, label=name)
    axes.set_yticks(range(len(slices)), slices)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(4, len(checkpoints)))
    figure.savefig(path, dpi=110)
    return True


def _summary(scores: dict[str, Any], everyone: Sequence[EvaluatedModel]) -> list[list[str]]:
    """Return the rows: name, score, difference to the first of several models, size and speed."""
    first = everyone[0].name
    to_first = [entry for entry in scores["differences"] if entry["against"] == first]
    against = {entry["checkpoint"]: entry["slices"][OVERALL] for entry in to_first}
    rows: list[list[str]] = []
    for answers in everyone:
        difference = [_interval(against[answers.name], "difference", sign="+")] if answers.name in against else [""]
        entry = scores["checkpoints"][answers.name][OVERALL]
        num_bytes, speed = answers.speed.weight_bytes, f"{answers.speed.generated_tokens_per_s:,.0f}"
        size = f"{num_bytes / 1e6:,.1f} MB" if num_bytes else "unknown"  # an endpoint does not tell its size
        rows.append([answers.name, _interval(entry, "score"), *(difference if len(everyone) > 1 else []), size, speed])
    return rows


def _extent(scores: dict[str, Any], name: str) -> str:
    overall = scores["checkpoints"][name][OVERALL]
    groups = f" in {overall['groups']:,} groups" if overall["groups"] < overall["n"] else ""
    unjudged = scores["checkpoints"][name].get(UNJUDGED, {}).get("n", 0)
    more = f"; {unjudged:,} more have unjudged answers in words, and count nowhere" if unjudged else ""
    return f"{overall['n']:,} questions judged{groups}{more}"


def _slice_names(scores: dict[str, Any], name: str) -> list[str]:
    return [part for part in scores["checkpoints"][name] if part != OVERALL]


def _interval(entry: dict[str, float], key: str, *, sign: str = "") -> str:
    if entry.get("n") == 0:
        return "not judged"
    low, high = (f"{100 * entry[bound]:{sign}.1f}" for bound in ("low", "high"))
    return f"{100 * entry[key]:{sign}.1f} ({low}, {high})"


def _differences(scores: dict[str, Any]) -> str:
    rows = [
        [pair["checkpoint"], pair["against"], name, _interval(entry, "difference", sign="+"), *_counts(entry)]
        for pair in scores["differences"]
        for name, entry in pair["slices"].items()
    ]
    return _markdown_table(["checkpoint", "against", "kind", "difference", "better", "worse"], rows)


def _counts(entry: dict[str, float]) -> list[str]:
    return [f"{entry['better']:,}", f"{entry['worse']:,}"]


def _failures(answers: EvaluatedModel) -> list[str]:
    judged = [row for row in answers.rows if is_judged(row)]
    failed = [row for row in judged if row["score"] < 1]
    lines = [f"{len(failed):,} of {len(judged):,} judged; all are in {conversations_name(answers.name)}."]
    for row in failed[:: max(1, len(failed) // FAILURES_SHOWN)][:FAILURES_SHOWN]:
        asked = row["conversation"]["messages"][-1]["content"]
        lines.append(
            f"- {_quote(row['id'])} ({row['grade']}): {_quote(row['reason'])}\n"
            f"  - asked: {_quote(asked)}\n"
            f"  - expected: {_quote(json.dumps(row['expected'], ensure_ascii=False))}\n"
            f"  - answered: {_quote(_said(row['answer']))}"
        )
    return lines


def _said(answer: dict[str, Any]) -> str:
    functions = [call["function"] for call in answer.get("tool_calls", [])]
    calls = [f"{function['name']}({json.dumps(function['arguments'], ensure_ascii=False)})" for function in functions]
    return " ".join([answer["content"], *calls]).strip()


def _quote(text: str) -> str:
    """Return a text on one line as Markdown code, at most 300 characters; markup in the text has no effect."""
    line = " ".join(text.replace("`", "'").split())
    return f"`{line if len(line) <= 300 else line[:297] + '...'}`" if line else "(nothing)"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ruler, *rows))
