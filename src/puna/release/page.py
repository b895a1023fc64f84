"""A decision and what is known about the model -> the page that a manager reads, in blocks. Decides nothing."""

from collections.abc import Iterator
from pathlib import Path

from puna import artifact
from puna.data.overlap import MIN_WORDS, NORMALIZATION
from puna.release.blocks import Block, Heading, Items, Lines, Paragraph, Picture, Table, to_html, to_markdown
from puna.release.compare import POINTS, Comparison, Outcome
from puna.release.evaluations import Answered
from puna.release.facts import Facts, data_rows, receipt_rows, tree_lines
from puna.release.gate import Decision, Model, explain
from puna.release.leaks import Leaks
from puna.release.picture import BAD, GOOD, PLAIN, Mark, draw_intervals
from puna.release.terms import applying

SUITES = {"task": "the task", "general": "the general suite"}
RULES = {
    "scores": "Scores of these very models",
    "comparison": "Compared with others",
    "judged": "Answers judged for what they say",
    "exam": "The questions tell good from bad",
    "task": "The task",
    "general": "Nothing forgotten",
    "limits": "Size, speed and cost",
    "receipts": "Receipts of every step",
    "overlap": "No test data in training data",
    "licences": "Licences",
}
OVERLAPS_SHOWN = 20
HOW = (
    "All models answered the same questions, and every difference is paired: question by question. The intervals are "
    "95 %, at the effective number of questions where these come in groups. For up to 60 questions they are exact, and "
    "for more they approximate the same test; no model counts as better where McNemar's exact test does not say so. "
    "A demand is met when the whole interval lies above its limit, so a model that does not deserve it passes one in "
    "2.5 of 100 cases at most (2.9 by the approximation). A GO needs every demand at once, which makes the error of "
    "the whole no greater than that of one: nothing has to be corrected for their number. Intervals that nothing was "
    "demanded of are there to look at, several at a time and uncorrected: from those alone no model is better."
)


def write_page(decision: Decision, facts: Facts, folder: Path) -> None:
    """Write decision.md, decision.html and their pictures."""
    blocks = list(_blocks(decision, facts))
    artifact.write_text(folder / "decision.md", to_markdown(decision.headline, blocks))
    artifact.write_text(folder / "decision.html", to_html(decision.headline, blocks, is_go=decision.is_go))
    for block in blocks:
        if isinstance(block, Picture):
            artifact.write_text(folder / block.file, block.svg + "\n")


def _blocks(decision: Decision, facts: Facts) -> Iterator[Block]:
    yield Paragraph(" ".join([f"Whether {decision.name} may go into use, and why.", facts.description]).strip())
    if decision.reasons:
        yield Items([f"{reason[:1].upper()}{reason[1:]}." for reason in decision.reasons])
    if decision.overrides:
        yield Heading("Overridden")
        yield Items(decision.overrides)
    if facts.exceptions:
        yield Heading("Exceptions to licences")
        yield Items(facts.exceptions)
    yield Heading("The models side by side")
    yield from _models(decision)
    yield Heading("Differences")
    yield from _differences(decision)
    yield Heading("The rules, one by one")
    yield _rules(decision)
    yield Heading("What was not measured")
    yield Items(decision.unmeasured)
    yield Heading("Test questions in training data")
    yield from _overlap(decision.leaks, decision)
    yield Heading("Receipts: what steps claimed and measured")
    rows = receipt_rows(facts)
    yield Table(["step", "claim", "value", "limit", "held"], rows) if rows else Paragraph("None.")
    yield Heading("Data and lineage")
    data = data_rows(facts.tree)
    columns = ["dataset", "documents", "conversations", "licences", "read by (as)", "hash"]
    yield Table(columns, data) if data else Paragraph("The lineage shows no data.")
    yield Lines(tree_lines(facts.tree))
    yield Heading("Licences")
    yield from _licences(facts)
    yield Heading("How to read this")
    yield Paragraph(HOW)


def _models(decision: Decision) -> Iterator[Block]:
    rows = [
        [
            model.label,
            model.name,
            _score(model.task),
            _score(model.general),
            f"{model.measured.weight_bytes / 1e6:,.1f} MB" if model.measured else "not measured",
            f"{model.measured.tokens_per_s:,.0f}" if model.measured else "not measured",
            f"{model.usd_per_million:,.2f} USD" if model.usd_per_million is not None else "not known",
        ]
        for model in decision.models
    ]
    columns = ["", "checkpoint", "task, % right", "general suite, % right", "size", "tokens/s", "a million tokens"]
    yield Table(columns, rows)
    yield Paragraph(f"In brackets are 95 % intervals. {_assumption(decision)}")
    for suite in SUITES:
        marks = [_score_mark(model, suite) for model in decision.models if getattr(model, suite)]
        if marks:
            title = f"Right answers on {SUITES[suite]}"
            svg = draw_intervals(marks, title=title, axis="% right, with 95 % interval", span=(0, 100))
            yield Picture(f"decision-{suite}.svg", title, svg)


def _assumption(decision: Decision) -> str:
    price = decision.settings.usd_per_hour
    speed = (
        "Size is that of the weights on the disk. Speed is the tokens written a second in the evaluation, many "
        "questions at a time, measured once on whatever machine it ran on, and without an interval."
    )
    if price is None:
        return f"{speed} The cost is not known: no price of a machine was given (gate.usd_per_hour)."
    return f"{speed} The cost assumes a machine like that one at {price:,.2f} USD an hour that is always busy."


def _score(answered: Answered | None) -> str:
    if answered is None:
        return "not measured"
    return "{:.1f} ({:.1f} to {:.1f})".format(*(POINTS * value for value in answered.interval))


def _score_mark(model: Model, suite: str) -> Mark:
    answered: Answered = getattr(model, suite)
    mean, low, high = (POINTS * value for value in answered.interval)
    return Mark(model.label, mean, low, high, color=GOOD if model.role == "candidate" else PLAIN)


def _differences(decision: Decision) -> Iterator[Block]:
    if not decision.comparisons:
        yield Paragraph("None could be measured.")
        return
    rows = [
        [
            SUITES[each.suite],
            f"{each.label} ({each.name})",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*(POINTS * value for value in each.difference)),
            "" if each.least is None else f"above {POINTS * each.least:+.1f}",
            each.outcome.value,
            f"{each.num_questions:,} in {each.num_groups:,} groups, {each.better:,} better, {each.worse:,} worse",
        ]
        for each in decision.comparisons
    ]
    yield Paragraph("How much better this model is, in points of 100, and what was demanded of the whole interval.")
    yield Table(["on", "against", "difference", "demanded", "result", "questions"], rows)
    bounds = [POINTS * value for each in decision.comparisons for value in (*each.difference, each.least or 0.0)]
    reach = max(10.0, *(abs(value) * 1.1 for value in bounds))
    title = "How much better this model is"
    axis = "points of 100, with 95 % interval; dashed: the limit that the interval must lie to the right of"
    svg = draw_intervals([*map(_difference_mark, decision.comparisons)], title=title, axis=axis, span=(-reach, reach))
    yield Picture("decision-differences.svg", title, svg)


def _difference_mark(each: Comparison) -> Mark:
    mean, low, high = (POINTS * value for value in each.difference)
    limit = None if each.least is None else POINTS * each.least
    color = {Outcome.MET: GOOD, Outcome.TOLD: PLAIN}.get(each.outcome, BAD)
    suite = "" if each.suite == "task" else ", general"
    return Mark(f"than {each.label}{suite}", mean, low, high, limit, color)


def _rules(decision: Decision) -> Table:
    rows = [
        [
            RULES[each.rule],
            each.rule,
            "holds" if each.held else "overridden" if each.override else "does not hold",
            "; ".join(each.reasons) or each.told or _met(decision, each.rule) or "nothing was demanded",
        ]
        for each in decision.verdicts
    ]
    return Table(["rule", "its name", "result", "why"], rows)


def _met(decision: Decision, suite: str) -> str:
    return "; ".join(explain(each) for each in decision.comparisons if each.suite == suite)


def _overlap(leaks: Leaks | None, decision: Decision) -> Iterator[Block]:
    settings = decision.settings
    if leaks is None:
        yield Paragraph("Not looked for: there are no questions of an evaluation of this model.")
        return
    report = leaks.report
    n = settings.overlap_words
    yield Paragraph(
        f"{report.num_probes:,} questions and long expected answers were sought in {report.num_rows:,} rows of "
        f"{', '.join(leaks.datasets) or 'no dataset'}. A question counts as found where one row holds at least "
        f"{settings.overlap_share:.0%} of its n-grams (n = {n} words; {NORMALIZATION}) and its last user message; one "
        f"of fewer than {n} words of its own, only where the row has the expected answer too. N-grams that many groups "
        f"of the test share are its template and do not count. {len(report.too_short):,} are too short to be told from "
        f"chance (under {MIN_WORDS} words of their own, or without an answer in words). Paraphrases and translations "
        f"are not found."
    )
    if leaks.elsewhere:
        names = ", ".join(leaks.elsewhere)
        yield Paragraph(f"Not looked at, since an imported model learned from it before it came here: {names}.")
    if leaks.measured:
        yield Paragraph(f"Only measured on, never learned from: {', '.join(leaks.measured)}.")
    if not report.found:
        yield Paragraph("None was found.")
        return
    rows = [[each.name, f"{each.share:.0%}", each.place] for each in report.found[:OVERLAPS_SHOWN]]
    yield Table(["question", "of its n-grams", "in"], rows)
    if len(report.found) > OVERLAPS_SHOWN:
        yield Paragraph(f"All {len(report.found):,} are in overlaps.jsonl.")


def _licences(facts: Facts) -> Iterator[Block]:
    yield Paragraph(f"It would be released under: {facts.governing.title}.")
    rows = [[each.title, each.id, " ".join(each.duties) or "none"] for each in applying(facts.inherited)]
    unknown = sorted(facts.inherited - {each.id for each in applying(facts.inherited)})
    rows += [["not known", id, "read them: nothing here knows what they ask"] for id in unknown]
    yield Table(["inherited", "id", "duties"], rows) if rows else Paragraph("It inherits none.")
    yield Paragraph("This was read from the manifests of the lineage. It is no legal advice.")
