"""Tables of rows -> findings about the rows that are kept, with numbers, examples and the setting that removes them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from puna.data.overlap import row_text
from puna.diagnose.finding import Finding
from puna.diagnose.order import place_of
from puna.diagnose.rules.answers import LEAST_ANSWERS, MOST_EQUAL
from puna.ingest.checks.compared import answer_places, compare_row, dialogue_of
from puna.ingest.checks.table import Table
from puna.progress import printable

EXAMPLES = 3
SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class DataFinding:
    """A finding about data: `count` of `total` rows or answers, with places and texts of a few of them."""

    finding: Finding
    count: int
    total: int
    examples: Sequence[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        counts = {"count": self.count, "total": self.total, "share": self.count / self.total}
        return {**self.finding.to_json(), **counts, "examples": list(self.examples)}


def find(tables: Sequence[Table], rejected: Sequence[dict[str, str]], num_rejected: int) -> list[DataFinding]:
    """Return the findings about kept rows, and about records that could not be read, the most important first."""
    found = [finding for table in tables for finding in _of_table(table)]
    if num_rejected:
        total = num_rejected + sum(len(table.rows) for table in tables)
        seen = f"{_share(num_rejected, total, 'records')} could not be read, first {rejected[0]['place']}: "
        remedy = "Correct the records that rejected.jsonl names, or the setting format."
        finding = Finding("rows-rejected", f"{seen}{rejected[0]['text']}.", remedy)
        found.append(DataFinding(finding, num_rejected, total, rejected))
    return sorted(found, key=lambda each: place_of(each.finding.code))


def _of_table(table: Table) -> Iterator[DataFinding]:
    if not table.num_kept:
        return
    yield from _equal_answers(table)
    empty = [index for index in table.kept() if table.has_empty[index]]
    if empty:
        seen = f"{_share(len(empty), table.num_kept, table.kind)} have an empty answer, first {table.places[empty[0]]}."
        yield _finding(table, "answers-empty", seen, "Set drop_empty = true, or write the answers.", empty)
    copies = table.copies()
    if copies:
        seen = (
            f"{_share(len(copies), table.num_kept, table.kind)} are a copy of an earlier row, {_first(table, copies)}."
        )
        yield _finding(
            table, "data-duplicated", seen, 'Set drop_duplicates = "exact" to keep one of each.', list(copies)
        )
    near = table.near_copies()
    if near:
        seen = f"{_share(len(near), table.num_kept, table.kind)} are nearly a copy of an earlier row, "
        remedy = 'Look at the examples; set drop_duplicates = "near" to keep one of each.'
        yield _finding(table, "data-near-duplicated", f"{seen}{_first(table, near)}.", remedy, list(near))
    again = _asked_again(table, {*copies, *near})
    if again:
        seen = f"{_share(len(again), table.num_kept, table.kind)} ask what an earlier row asks and answer otherwise, "
        remedy = "Keep the right answer of each question, unless several are right."
        yield _finding(table, "answers-differ", f"{seen}{_first(table, again)}.", remedy, list(again))


def _equal_answers(table: Table) -> Iterator[DataFinding]:
    counts = Counter(answer for index in table.kept() for answer in table.answers[index])
    total = counts.total()
    if total < LEAST_ANSWERS:
        return
    answer, count = counts.most_common(1)[0]
    if count <= MOST_EQUAL * total:
        return
    places = [index for index in table.kept() if answer in table.answers[index]]
    seen = f"{_share(count, total, 'answers')} are {most_frequent_answer(table, answer)!r}, first {table.places[places[0]]}."
    most = max(LEAST_ANSWERS, table.num_kept // 100)
    remedy = f"Set max_equal_answers = {most}, or correct the answers; leave them if so few different ones are meant."
    yield _finding(table, "answers-equal", seen, remedy, places, count=count, total=total)


def most_frequent_answer(table: Table, answer: int) -> str:
    """Return the beginning of the first answer with this digest, as it was written."""
    for index in table.kept():
        if answer in table.answers[index]:
            messages, _ = dialogue_of(table.rows[index])
            spoken = [messages[place]["content"] for place in answer_places(table.rows[index], messages)
                      if messages[place]["content"].strip() and not messages[place].get("tool_calls")]  # fmt: skip
            return _shown(spoken[compare_row(table.rows[index]).answers.index(answer)])
    raise AssertionError("the digest of an answer of this table")


def _asked_again(table: Table, copies: set[int]) -> dict[int, int]:
    """Map each row with the prompt of an earlier row, but another answer, to that row."""
    if table.kind == "preferences":
        return {}
    first: dict[int, int] = {}
    found: dict[int, int] = {}
    for index in table.kept():
        prompt = table.prompts[index]
        if prompt is None or index in copies:
            continue
        earlier = first.setdefault(prompt, index)
        if earlier < index and table.answers[index] != table.answers[earlier]:
            found[index] = earlier
    return found


def _finding(
    table: Table, code: str, seen: str, remedy: str, rows: Sequence[int], *, count: int = 0, total: int = 0
) -> DataFinding:
    examples = [
        {"place": table.places[index], "id": str(table.rows[index].get("id", "")), "text": _text(table.rows[index])}
        for index in rows[:EXAMPLES]
    ]
    return DataFinding(Finding(code, seen, remedy), count or len(rows), total or table.num_kept, examples)


def _first(table: Table, found: dict[int, int]) -> str:
    index, earlier = next(iter(found.items()))
    return f"first {table.places[index]} ({table.places[earlier]}): {_text(table.rows[index])!r}"


def _text(row: dict[str, Any]) -> str:
    messages, _ = dialogue_of(row)
    return _shown(row_text(messages) if messages else row["text"])


def _shown(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def _share(count: int, total: int, name: str) -> str:
    return f"{count:,} of {total:,} {name} ({count / total:.1%})"
