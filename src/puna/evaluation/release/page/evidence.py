"""A decision's evidence -> the folds at the end of its page: methods, names, measurements, lineage and licences."""

from collections.abc import Iterator, Mapping

from puna.data.overlap.ngrams import MIN_WORDS, NORMALIZATION
from puna.evaluation.release.decision import Decision
from puna.evaluation.release.facts import Facts, data_rows, receipt_rows, tree_lines
from puna.evaluation.release.leaks import Leaks
from puna.evaluation.release.page.blocks import Block, Details, Lines, Paragraph, Picture, Table
from puna.evaluation.release.page.picture import BAD, GOOD, PLAIN, Mark, draw_intervals
from puna.evaluation.release.paired_comparison import POINTS, Outcome, PairedComparison
from puna.evaluation.release.terms import applying
from puna.evaluation.release.whole_prompts import MIN_PROMPT_WORDS

SUITES = {"task": "the task", "general": "the general suite"}
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


def folds(decision: Decision, facts: Facts, rules: Mapping[str, str]) -> Iterator[Details]:
    """Yield the folds. `rules` has the titles of the rules by their names."""
    yield Details("Differences and their demands, and how they are computed", list(_differences(decision)))
    names = [[rules[each.rule], each.rule] for each in decision.verdicts]
    checkpoints = [[model.label, model.name] for model in decision.models]
    named = [Table(["check", "rule in the settings"], names), Table(["model", "checkpoint"], checkpoints)]
    yield Details("Names of rules and checkpoints", named)
    yield Details("How test questions were looked for in training data", list(_overlap(decision.leaks, decision)))
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
    yield Paragraph("How much better this model is, in points of 100, and what was demanded of the whole interval.")
    yield Table(["on", "against", "difference", "demanded", "result", "questions"], rows)
    bounds = [POINTS * value for each in decision.comparisons for value in (*each.difference, each.threshold or 0.0)]
    reach = max(10.0, *(abs(value) * 1.1 for value in bounds))
    title = "How much better this model is"
    axis = "points of 100, 95 % interval; dashed: the limit to its left"
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
    """Say how many questions could be looked for in how many rows, and how many were found; no more than that.

    Example:
        >>> overlap_summary(None)
        'Not looked for: there are no questions of an evaluation of this model.'
    """
    if leaks is None:
        return "Not looked for: there are no questions of an evaluation of this model."
    if not leaks.datasets:
        return "Not looked for: no training data of this model is at hand."
    share = "All" if leaks.num_long == leaks.num_questions else f"{leaks.num_long:,} of"
    sought = f"{share} {leaks.num_questions:,} questions were long enough to be looked for"
    number = len(leaks.report.found)
    found = f"{number:,} of them, or of the expected answers, were found" if number else "none was found"
    if not leaks.num_sought and not number:
        found = "the others cannot be told from chance"
    unread = f" Not readable: {', '.join(leaks.unread)}." if leaks.unread else ""
    rows = f"in the {leaks.report.num_rows:,} rows of training data{leaks.aside}"
    return f"{sought} {rows}; {found}. Questions in other words are not found.{unread}"


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
        f"of the test share are its template and do not count. {len(report.too_short):,} are too short for n-grams "
        f"(under {MIN_WORDS} words of their own, or without an answer in words). Any question also counts as found "
        f"where its whole prompt, of {MIN_PROMPT_WORDS} words or more, stands before an answer in a training "
        f"conversation. Paraphrases and translations are not found."
    )
    if leaks.elsewhere:
        names = ", ".join(leaks.elsewhere)
        yield Paragraph(f"Not looked at, since an imported model learned from it before it came here: {names}.")
    if leaks.measured:
        yield Paragraph(f"Only measured on, never learned from: {', '.join(leaks.measured)}.")
    if not report.found:
        return
    rows = [[each.name, f"{each.share:.0%}", each.place] for each in report.found[:OVERLAPS_SHOWN]]
    yield Table(["question", "of its n-grams", "in"], rows)
    if len(report.found) > OVERLAPS_SHOWN:
        yield Paragraph(f"All {len(report.found):,} are in overlaps.jsonl.")


def _licences(facts: Facts) -> Iterator[Block]:
    rows = [[each.title, each.id, " ".join(each.duties) or "none"] for each in applying(facts.inherited)]
    unknown = sorted(facts.inherited - {each.id for each in applying(facts.inherited)})
    rows += [["not known", id, "read them: nothing here knows what they ask"] for id in unknown]
    yield Table(["inherited", "id", "duties"], rows) if rows else Paragraph("It inherits none.")
    yield Paragraph("This was read from the manifests of the lineage.")
