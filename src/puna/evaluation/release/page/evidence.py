"""Evidence of a decision -> the folds at the end of the page: methods, names, receipts, lineage and licences."""

from collections.abc import Iterator, Mapping

from puna.data.overlap.ngrams import MIN_WORDS, NORMALIZATION
from puna.evaluation.release.decision import Decision
from puna.evaluation.release.facts import Facts, data_rows, receipt_rows, tree_lines
from puna.evaluation.release.overlap.leaks import Leaks
from puna.evaluation.release.overlap.whole_prompts import MIN_PROMPT_WORDS
from puna.evaluation.release.page.blocks import Block, Details, Lines, Paragraph, Picture, Table
from puna.evaluation.release.page.picture import BAD, GOOD, PLAIN, Mark, draw_intervals
from puna.evaluation.release.paired_comparison import POINTS, Outcome, PairedComparison
from puna.evaluation.release.terms import applying

SUITES = {"task": "the task", "general": "the general suite"}
OVERLAPS_SHOWN = 20
HOW = (
    "All models answered the same questions, and every difference is paired by question. The intervals are 95 %, at "
    "the effective number of questions if questions come in groups. They are exact for up to 60 questions and "
    "approximate above. No model counts as better against McNemar's exact test. A threshold is met if the whole "
    "interval lies above. So a model that does not deserve it meets a threshold in at most 2.5 of 100 cases (2.9 by "
    "the approximation). A GO needs all thresholds at once, so the error of the whole is at most the error of one "
    "threshold, and no correction for their number is needed. Intervals without a threshold are for information, "
    "without a correction: they alone show no model to be better."
)


def folds(decision: Decision, facts: Facts, rules: Mapping[str, str]) -> Iterator[Details]:
    """Yield the folds; `rules` maps names of rules to titles."""
    yield Details("Differences, thresholds, and the method", list(_differences(decision)))
    names = [[rules[each.rule], each.rule] for each in decision.verdicts]
    checkpoints = [[model.label, model.name] for model in decision.models]
    named = [Table(["check", "rule in the settings"], names), Table(["model", "checkpoint"], checkpoints)]
    yield Details("Names of rules and checkpoints", named)
    yield Details("How the search for test questions in training data works", list(_overlap(decision.leaks, decision)))
    rows = receipt_rows(facts)
    receipts = Table(["step", "claim", "value", "limit", "held"], rows) if rows else Paragraph("None.")
    yield Details("Measurements of every step (receipts)", [receipts])
    data = data_rows(facts.tree)
    columns = ["dataset", "documents", "conversations", "licences", "read by (as)", "hash"]
    table = Table(columns, data) if data else Paragraph("The lineage shows no data.")
    yield Details("Data and lineage", [table, Lines(tree_lines(facts.tree))])
    yield Details("Inherited licences and their duties", list(_licences(facts)))


def _differences(decision: Decision) -> Iterator[Block]:
    if not decision.comparisons:
        yield Paragraph("None could be measured.")
        return
    rows = [
        [
            SUITES[each.suite],
            f"{each.label} ({each.name})",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*(POINTS * value for value in each.difference)),
            "" if each.threshold is None else f"above {POINTS * each.threshold:+.1f}",
            each.outcome.value,
            f"{each.num_questions:,} in {each.num_groups:,} groups, {each.better:,} better, {each.worse:,} worse",
        ]
        for each in decision.comparisons
    ]
    yield Paragraph("Lead of this model in points of 100, and the threshold for the whole interval.")
    yield Table(["on", "against", "difference", "threshold", "result", "questions"], rows)
    bounds = [POINTS * value for each in decision.comparisons for value in (*each.difference, each.threshold or 0.0)]
    reach = max(10.0, *(abs(value) * 1.1 for value in bounds))
    title = "Lead of this model"
    axis = "points of 100, 95 % interval; dashed: threshold"
    svg = draw_intervals([*map(_difference_mark, decision.comparisons)], title=title, axis=axis, span=(-reach, reach))
    yield Picture("decision-differences.svg", title, svg)
    yield Paragraph(HOW)


def _difference_mark(each: PairedComparison) -> Mark:
    mean, low, high = (POINTS * value for value in each.difference)
    limit = None if each.threshold is None else POINTS * each.threshold
    color = {Outcome.MET: GOOD, Outcome.SHOWN: PLAIN}.get(each.outcome, BAD)
    suite = "" if each.suite == "task" else ", general"
    return Mark(f"than {each.label}{suite}: {mean:+.1f}", mean, low, high, limit, color)


def overlap_summary(leaks: Leaks | None) -> str:
    """Return sentences with the numbers of questions, searched rows and found questions.

    Example:
        >>> overlap_summary(None)
        'Not searched: no evaluation has questions of this model.'
    """
    if leaks is None:
        return "Not searched: no evaluation has questions of this model."
    if not leaks.datasets:
        return "Not searched: no training data of this model is available."
    share = "All" if leaks.num_long == leaks.num_questions else f"{leaks.num_long:,} of"
    sought = f"{share} {leaks.num_questions:,} questions were long enough for a search"
    number = len(leaks.report.found)
    result = f"{number:,} questions or expected answers were found" if number else "none was found"
    if not leaks.num_sought and not number:
        result = "short questions also match by chance"
    unread = f" Not readable: {', '.join(leaks.unread)}." if leaks.unread else ""
    rows = f"in the {leaks.report.num_rows:,} rows of training data{leaks.aside}"
    return f"{sought} {rows}; {result}. The search does not find paraphrases.{unread}"


def _overlap(leaks: Leaks | None, decision: Decision) -> Iterator[Block]:
    settings = decision.settings
    if leaks is None:
        yield Paragraph("Not searched: no evaluation has questions of this model.")
        return
    report = leaks.report
    n = settings.overlap_words
    yield Paragraph(
        f"The search looked for {report.num_probes:,} questions and long expected answers in {report.num_rows:,} rows "
        f"of {', '.join(leaks.datasets) or 'no dataset'}. A question counts as found if one row has at least "
        f"{settings.overlap_share:.0%} of the question's n-grams (n = {n} words; {NORMALIZATION}) and the last user "
        f"message. For a question with fewer than {n} words of its own, the row must also have the expected answer. "
        f"N-grams of many groups of the test belong to a template and do not count. {len(report.too_short):,} are too "
        f"short for n-grams (under {MIN_WORDS} words of their own, or without an answer in words). Any question also "
        f"counts as found if the whole prompt, of {MIN_PROMPT_WORDS} words or more, stands before an answer in a "
        f"training conversation. The search does not find paraphrases and translations."
    )
    if leaks.elsewhere:
        names = ", ".join(leaks.elsewhere)
        yield Paragraph(f"Not searched, since an imported model learned from it before the import: {names}.")
    if leaks.measured:
        yield Paragraph(f"Used for measurements only, not for training: {', '.join(leaks.measured)}.")
    if not report.found:
        return
    rows = [[each.name, f"{each.share:.0%}", each.place] for each in report.found[:OVERLAPS_SHOWN]]
    yield Table(["question", "of its n-grams", "in"], rows)
    if len(report.found) > OVERLAPS_SHOWN:
        yield Paragraph(f"All {len(report.found):,} are in overlaps.jsonl.")


def _licences(facts: Facts) -> Iterator[Block]:
    rows = [[each.title, each.id, " ".join(each.duties) or "none"] for each in applying(facts.inherited)]
    unknown = sorted(facts.inherited - {each.id for each in applying(facts.inherited)})
    rows += [["not known", id, "read the terms: Puna does not know the duties"] for id in unknown]
    yield Table(["inherited", "id", "duties"], rows) if rows else Paragraph("The model inherits no licences.")
    yield Paragraph("This table comes from the manifests of the lineage.")
