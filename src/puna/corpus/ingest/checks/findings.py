"""Tables of rows -> findings about kept rows and unusable records, with numbers, examples and a remedy."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.corpus.ingest.checks.digests import row_digests
from puna.corpus.ingest.checks.table import Table
from puna.data.overlap.ngrams import row_text
from puna.data.overlap.prompts import answer_places, dialogue_of
from puna.evaluation.diagnose.order import place_of
from puna.evaluation.diagnose.reasons import to_json
from puna.evaluation.diagnose.rules.answers import LEAST_ANSWERS, MOST_EQUAL
from puna.formats.chat.conversation import is_blank
from puna.pipeline.finding import Finding
from puna.pipeline.progress import printable

EXAMPLES = 3
SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class DataFinding:
    """A finding about data: `count` of `total` rows or answers, with places and texts of a few examples.

    Example:
        >>> finding = Finding("rows-rejected", "2 of 10 records could not be used.", "Correct the records.")
        >>> DataFinding(finding, 2, 10, []).to_json()["share"]
        0.2
    """

    finding: Finding
    count: int
    total: int
    examples: Sequence[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        counts = {"count": self.count, "total": self.total, "share": self.count / self.total}
        return {**to_json(self.finding), **counts, "examples": list(self.examples)}


@dataclass(frozen=True)
class FrequentAnswer:
    """The most frequent answer in words of a table: `count` of `total` answers, at the indices `rows`.

    Example:
        >>> FrequentAnswer("Yes.", count=30, total=100, rows=range(30)).summary
        "most frequent answer: 'Yes.', 30 of 100 (30.0%)"
    """

    text: str
    count: int
    total: int
    rows: Sequence[int]

    @property
    def share(self) -> float:
        return self.count / self.total

    @property
    def summary(self) -> str:
        if self.count == 1:
            return f"no two of {self.total:,} answers are equal"
        return f"most frequent answer: {self.text!r}, {self.count:,} of {self.total:,} ({self.share:.1%})"


def find(tables: Sequence[Table], rejected: Sequence[dict[str, str]], num_rejected: int) -> list[DataFinding]:
    """Return the findings about kept rows and about unusable records, the most important first.

    Args:
        rejected: Places and reasons of the first unusable records.
        num_rejected: Number of all unusable records.

    Example:
        >>> rejected = [{"place": "a.jsonl:3", "text": "not JSON"}]
        >>> [each.finding.code for each in find([], rejected, num_rejected=1)]
        ['rows-rejected']
    """
    results = [finding for table in tables if table.num_kept for finding in _of_table(table)]
    if num_rejected:
        total = num_rejected + sum(len(table.rows) for table in tables)
        seen = f"{_share(num_rejected, total, 'records')} could not be used, first {rejected[0]['place']}: "
        remedy = "Correct the records that rejected.jsonl names, or the setting format."
        finding = Finding("rows-rejected", f"{seen}{rejected[0]['text']}.", remedy)
        results.append(DataFinding(finding, num_rejected, total, rejected))
    return sorted(results, key=lambda each: place_of(each.finding.code))


def frequent_answer(table: Table) -> FrequentAnswer | None:
    """Find the most frequent answer in words; None for fewer than ten answers.

    Example:
        >>> table = Table.read("conversations", Path("build/conversations.jsonl"), places)
        >>> frequent_answer(table) is None  # the table has one answer
        True
    """
    counts = Counter(answer for index in table.kept() for answer in table.answers[index])
    if counts.total() < LEAST_ANSWERS:
        return None
    answer, count = counts.most_common(1)[0]
    rows = [index for index in table.kept() if answer in table.answers[index]]
    first = table.rows[rows[0]]
    messages, _ = dialogue_of(first)
    texts = [messages[index]["content"] for index in answer_places(first, messages)
             if not is_blank(messages[index]["content"]) and not messages[index].get("tool_calls")]  # fmt: skip
    return FrequentAnswer(_shown(texts[row_digests(first).answers.index(answer)]), count, counts.total(), rows)


def _of_table(table: Table) -> Iterator[DataFinding]:
    frequent = frequent_answer(table)
    if frequent is not None and frequent.share > MOST_EQUAL:
        seen = f"{_share(frequent.count, frequent.total, 'answers')} are {frequent.text!r}"
        most = max(LEAST_ANSWERS, table.num_kept // 100)
        remedy = (
            f"Set max_equal_answers = {most}, or correct the answers; leave them if so few different ones are meant."
        )
        finding = Finding("answers-equal", f"{seen}, first {table.places[frequent.rows[0]]}.", remedy)
        examples = [_example(table, index) for index in frequent.rows[:EXAMPLES]]
        yield DataFinding(finding, frequent.count, frequent.total, examples)
    empty = {index: index for index in table.kept() if table.has_empty[index]}
    yield from _rows(
        table, "answers-empty", "have an empty answer", "Set drop_empty = true, or write the answers.", empty
    )
    copies, near = table.copies(), table.near_copies()
    remedy = 'Set drop_duplicates = "exact" to keep one of each.'
    yield from _rows(table, "data-duplicated", "are a copy of an earlier row", remedy, copies)
    remedy = 'Look at the examples; set drop_duplicates = "near" to keep one of each.'
    yield from _rows(table, "data-near-duplicated", "are nearly a copy of an earlier row", remedy, near)
    again = _asked_again(table, copies.keys() | near.keys())
    remedy = "Keep the right answer of each question, unless several are right."
    yield from _rows(table, "answers-differ", "ask what an earlier row asks and answer otherwise", remedy, again)


def _rows(table: Table, code: str, predicate: str, remedy: str, results: Mapping[int, int]) -> Iterator[DataFinding]:
    """Yield the finding about rows; `results` maps a row to the similar earlier row, or to the row itself."""
    if not results:
        return
    examples = [_example(table, *pair) for pair in list(results.items())[:EXAMPLES]]
    first = examples[0]["place"] + (f" (earlier: {examples[0]['earlier']})" if "earlier" in examples[0] else "")
    seen = f"{_share(len(results), table.num_kept, table.kind)} {predicate}, first {first}: {examples[0]['text']!r}."
    yield DataFinding(Finding(code, seen, remedy), len(results), table.num_kept, examples)


def _example(table: Table, index: int, earlier: int | None = None) -> dict[str, str]:
    row = table.rows[index]
    messages, _ = dialogue_of(row)
    text = _shown(row_text(messages) if messages else row["text"])
    example = {"place": table.places[index], "id": str(row.get("id", "")), "text": text}
    return example if earlier in (None, index) else {**example, "earlier": table.places[earlier]}


def _asked_again(table: Table, copies: set[int]) -> dict[int, int]:
    """Map every row with the prompt of an earlier row, but another answer, to the earlier row."""
    if table.kind == "preferences":
        return {}
    first: dict[int, int] = {}
    results: dict[int, int] = {}
    for index in table.kept():
        prompt = table.prompts[index]
        if not prompt or index in copies:
            continue
        earlier = first.setdefault(prompt, index)
        if earlier < index and table.answers[index] != table.answers[earlier]:
            results[index] = earlier
    return results


def _shown(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def _share(count: int, total: int, name: str) -> str:
    return f"{count:,} of {total:,} {name} ({count / total:.1%})"
