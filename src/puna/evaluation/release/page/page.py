"""A decision and facts about the model -> the page for a manager, in blocks. Decides nothing.

The part above the folds gives the grounds for a decision in plain words. Folds at the end hold methods, names of
settings, hashes and the lineage.
"""

from collections.abc import Iterator
from pathlib import Path

from puna.evaluation.release.decision import ComparedModel, Decision
from puna.evaluation.release.facts import Facts
from puna.evaluation.release.page.blocks import (
    Block,
    Heading,
    Items,
    Paragraph,
    Picture,
    Table,
    pictures,
    to_html,
    to_markdown,
)
from puna.evaluation.release.page.conversations import ModelAnswers, show_conversations
from puna.evaluation.release.page.evidence import SUITES, folds, overlap_summary
from puna.evaluation.release.page.exam import NullScore, explain_exam
from puna.evaluation.release.page.meaning import explain_right
from puna.evaluation.release.page.picture import GOOD, PLAIN, Mark, draw_intervals
from puna.evaluation.release.paired_comparison import POINTS, PairedComparison, explain
from puna.evaluation.release.short_ids import shorten_ids
from puna.evaluation.scores import EvaluatedModel
from puna.pipeline.artifacts import artifact

NOTES = {
    "teacher": "The teacher is the model that this model learned from.",
    "in_use": "The model in use is the model that this release would replace.",
}
RULES = {
    "scores": "The evaluations have exactly these models",
    "comparison": "Compared with others",
    "judged": "Content of the answers judged",
    "exam": "The questions tell good models from bad models",
    "task": "Good enough at the task",
    "general": "Nothing forgotten",
    "limits": "Size, speed and cost",
    "receipts": "Measurements of every step (receipts)",
    "overlap": "No test data in training data",
    "licences": "Licences",
}


def write_page(decision: Decision, facts: Facts, folder: Path) -> None:
    """Write decision.md, decision.html and the pictures."""
    blocks = list(_blocks(decision, facts))
    artifact.write_text(folder / "decision.md", to_markdown(decision.headline, blocks))
    artifact.write_text(folder / "decision.html", to_html(decision.headline, blocks, is_go=decision.is_go))
    for picture in pictures(blocks):
        artifact.write_text(folder / picture.file, picture.svg + "\n")


def _blocks(decision: Decision, facts: Facts) -> Iterator[Block]:
    yield Paragraph(" ".join([f"Whether {decision.name} may go into production, and why.", facts.description]).strip())
    if decision.reasons:
        yield Items([shorten_ids(f"{reason[:1].upper()}{reason[1:]}.") for reason in decision.reasons])
        yield from (Paragraph(f"What to do: {hint}.") for hint in decision.hints)
    if decision.overrides:
        yield Heading("Overridden")
        yield Items([shorten_ids(line) for line in decision.overrides])
    if facts.exceptions:
        yield Heading("Exceptions to licences")
        yield Items([shorten_ids(line) for line in facts.exceptions])
    yield Heading("The models side by side")
    yield from _models(decision)
    yield from _questions(decision)
    yield from _exams(decision)
    yield Heading("What was checked")
    yield _rules(decision)
    yield Heading("Cost")
    yield from _cost(decision)
    yield Heading("What was not measured")
    yield Items([shorten_ids(line) for line in decision.unmeasured])
    yield Heading("Test questions in training data")
    yield Paragraph(overlap_summary(decision.leaks))
    yield Heading("Licences")
    yield Paragraph(f"Licence of the release: {facts.governing.title}. This is no legal advice.")
    yield Heading("Details for those who check")
    yield from folds(decision, facts, RULES)


def _label(each: ComparedModel | PairedComparison) -> str:
    return each.label


def _models(decision: Decision) -> Iterator[Block]:
    has_general = any(model.general for model in decision.models)
    rows = [
        [
            _label(model),
            _score(model.task),
            *([_score(model.general)] if has_general else []),
            f"{model.measured.speed.weight_bytes / 1e6:,.1f} MB" if model.measured else "not measured",
            f"{model.measured.speed.generated_tokens_per_s:,.0f} tokens/s" if model.measured else "not measured",
        ]
        for model in decision.models
    ]
    general = ["right on general questions"] if has_general else []
    yield Table(["model", "right on the task", *general, "size", "speed"], rows)
    notes = [NOTES[model.role] for model in decision.models if model.role in NOTES]
    ranges = "In 95 of 100 cases, the range in brackets contains the true share. A point is one of 100 questions."
    yield Paragraph(" ".join([*notes, ranges]))
    for suite in SUITES:
        shown = [model for model in decision.models if (answers := getattr(model, suite)) and answers.scores]
        marks = [_score_mark(model, suite) for model in shown]
        if marks:
            title = f"Right answers on {SUITES[suite]}"
            svg = draw_intervals(marks, title=title, axis="% right, with the range", span=(0, 100))
            yield Picture(f"decision-{suite}.svg", title, svg)
    if sentences := [_sentence(each) for each in decision.comparisons if each.num_questions]:
        yield Items(sentences)


def _score(answered: EvaluatedModel | None) -> str:
    if answered is None:
        return "not measured"
    number = len(answered.scores)
    if not number:
        return "no answer was judged"
    return "{:.1f} % ({:.1f} to {:.1f}) of {:,}".format(*(POINTS * value for value in answered.interval), number)


def _score_mark(model: ComparedModel, suite: str) -> Mark:
    answered: EvaluatedModel = getattr(model, suite)
    mean, low, high = (POINTS * value for value in answered.interval)
    return Mark(f"{_label(model)}: {mean:.1f} %", mean, low, high, color=GOOD if model.role == "candidate" else PLAIN)


def _sentence(each: PairedComparison) -> str:
    """Say in numbers of questions how often the candidate did better and worse than another model."""
    alike = each.num_questions - each.better - each.worse
    where = "" if each.suite == "task" else " on the general questions"
    return (
        f"Against {_label(each)}{where}: better on {each.better:,} of {each.num_questions:,} questions, "
        f"worse on {each.worse:,}, alike on {alike:,}."
    )


def _questions(decision: Decision) -> Iterator[Block]:
    """Yield the sections that show answers. The conversations come from the task, else from the general suite."""
    suite = next((suite for suite in SUITES if getattr(decision.models[0], suite)), "")
    if not suite:
        return
    answered = [(model, getattr(model, suite)) for model in decision.models]
    yield Heading("Ten conversations, side by side")
    yield from show_conversations([ModelAnswers(_label(model), answers.rows) for model, answers in answered if answers])
    yield Heading("What “right” means")
    for name, title in SUITES.items():
        if answers := getattr(decision.models[0], name):
            yield from explain_right(answers.rows, title)


def _exams(decision: Decision) -> Iterator[Block]:
    """Yield the section on the sanity checks of every examined suite."""
    if any(null.comparison.num_questions for exam in decision.exams.values() for null in exam or ()):
        yield Heading("Could a model that knows nothing pass?")
    for suite, exam in decision.exams.items():
        rows = [
            NullScore(
                null.comparison.name, null.score, null.candidate_score, null.comparison.threshold or 0.0, null.is_beaten
            )
            for null in exam or ()
            if null.comparison.num_questions
        ]
        yield from explain_exam(rows, SUITES[suite])


def _rules(decision: Decision) -> Table:
    rows = [
        [
            RULES[each.rule],
            "passed" if each.held else "overridden" if each.override else "not passed",
            shorten_ids("; ".join(each.reasons) or each.remark or _met(decision, each.rule) or "no requirement"),
        ]
        for each in decision.verdicts
    ]
    return Table(["check", "result", "details"], rows)


def _met(decision: Decision, suite: str) -> str:
    return "; ".join(explain(each) for each in decision.comparisons if each.suite == suite)


def _cost(decision: Decision) -> Iterator[Block]:
    price = decision.settings.usd_per_hour
    hourly = {_label(model): model.measured.speed.generated_tokens_per_s for model in decision.models if model.measured}
    if price is None:
        yield Paragraph(
            "Not known, because no price was given. State the price of an hour of a machine like the machine of the "
            "evaluation in the recipe under [release.gate], as in usd_per_hour = 1.80. Then this page shows the cost "
            "of a million tokens for each model, and max_usd_per_million can set a limit."
        )
        rows = [[label, f"{1e6 / 3600 / speed:,.2f} USD"] for label, speed in hourly.items() if speed]
        columns = ["model", "cost of a million tokens at 1 USD per hour"]
    else:
        known = [model for model in decision.models if model.usd_per_million is not None]
        rows = [[_label(model), f"{model.usd_per_million:,.2f} USD"] for model in known]
        columns = ["model", f"cost of a million tokens at {price:,.2f} USD per hour"]
    if rows:
        yield Table(columns, rows)
    yield Paragraph(
        "The cost assumes a machine that is always busy, at the speed of the evaluation: generated tokens per second "
        "with many questions at a time, measured once on the machine of the evaluation."
    )
