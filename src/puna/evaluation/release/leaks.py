"""A model's lineage and the questions it was tested on -> which of these stand in the data that it was trained on.

The comparison of texts is data/overlap. Data that only measured something (a receipt, a validation loss) left no trace
in the weights and is not looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.data.overlap.ngrams import OverlapReport, Probe, find_overlaps, row_text, split_words
from puna.data.shards import SUFFIXES, read_rows
from puna.evaluation.release.facts import DATASETS, datasets_read, is_border, name_of
from puna.evaluation.release.terms import Node, Step
from puna.evaluation.release.whole_prompts import WholePrompts

# What a stage reads under these names it measures on, and learns nothing from; "" is any stage.
MEASURED = {"": {"validation"}, "quantize": {"data"}, "prune": {"data"}, "merge": {"data"}, "ingest": {"apart_from"}}
# Files of a dataset that no stage trains on.
ASIDE = ("rejected", "questions")


@dataclass(frozen=True)
class Leaks:
    """What was found in which datasets; `unread` are those of the lineage that are gone, changed or hold no text.

    `elsewhere` are those that an imported model had learned from before it came, and that did not come with it. Of
    `num_questions` only `num_sought` were looked for, `num_short` of them only as a whole prompt or in a row that has
    the right answer too.
    """

    report: OverlapReport
    datasets: list[str]
    unread: list[str]
    measured: list[str]
    elsewhere: list[str]
    num_questions: int
    num_sought: int
    num_short: int = 0

    @property
    def num_long(self) -> int:
        """Number of questions that are found by their words, whatever stands around these."""
        return self.num_sought - self.num_short

    @property
    def aside(self) -> str:
        """The clause on questions of few words, which are found in fewer cases; empty where there are none."""
        short, rest = self.num_short, self.num_questions - self.num_sought
        clauses = [f", {short:,} shorter ones only as a whole prompt or beside their right answers"] if short else []
        return "".join([*clauses, *([f", {rest:,} of too few words not at all"] if rest else [])])

    def describe(self, allowed: int) -> str:
        """Say how many questions could be looked for, and that none was found; no more than that."""
        number, num_found = self.num_questions, len(self.report.found)
        if num_found:
            return f"{num_found:,} test questions or answers were found in the training data; {allowed:,} are allowed"
        if not self.datasets:
            return "no training data is at hand in which test questions could be looked for"
        if not self.num_sought:
            return f"none of {number:,} questions was long enough to be looked for in the training data"
        if self.num_long == number:
            return f"all {number:,} questions were looked for in the training data; none was found"
        long = f"{self.num_long:,} of {number:,} questions were long enough to be looked for in the training data"
        return f"{long}{self.aside}; none was found"


def find_leaks(tree: Node, rows: list[dict[str, Any]], *, n: int, share: float) -> Leaks:
    """Look for the questions of an evaluation's rows, and their expected answers, in all that a model learned from."""
    trained: list[Path] = []
    unread: list[str] = []
    measured: list[str] = []
    elsewhere: list[str] = []
    own = datasets_read(_since_imports(tree))
    for path, steps in datasets_read(tree).items():
        states = {step.node["state"] for step in steps}
        if all(map(_only_measures, steps)):
            measured.append(name_of(path))
        elif states == {"missing"} and path not in own:
            elsewhere.append(name_of(path))
        elif states != {"held"}:
            unread.append(f"{name_of(path)}, which is {'gone' if 'missing' in states else 'changed'}")
        elif _shards(Path(path)):
            trained.append(Path(path))
        elif not any(node["kind"] in DATASETS for node in steps[0].node["inputs"].values()):
            unread.append(f"{name_of(path)}, which holds no rows of text")
    probes = [probe for row in rows for probe in _probes(row, n)]
    prompts = WholePrompts.of({_name(row): row["conversation"]["messages"] for row in rows})
    report = find_overlaps(probes, _texts(trained, prompts), n=n, threshold=share)
    more = prompts.overlaps(overlap.name for overlap in report.found)
    report = replace(report, found=[*report.found, *more])
    names = {_name(row) for row in rows}
    long = names - set(report.too_short) - set(report.beside_answers)
    short = (names - long) & (prompts.sought() | set(report.beside_answers))
    datasets = [path.name for path in trained]
    return Leaks(
        report, datasets, unread, measured, elsewhere, len(names), len(long) + len(short), num_short=len(short)
    )


def _since_imports(node: Node) -> Node:
    """Return a lineage without what lies behind models that were imported as they had been released.

    What is imported from a stage's own output, to change its form, is still one's own.
    """
    inputs = {} if is_border(node) else node["inputs"]
    return {**node, "inputs": {role: _since_imports(each) for role, each in inputs.items()}}


def _only_measures(step: Step) -> bool:
    role = step.role.split(".")[0]
    stage = step.reader.get("stage", "") if step.reader else ""
    return role in MEASURED[""] or role in MEASURED.get(stage, ())


def _shards(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.suffix in SUFFIXES and not file.name.startswith((*ASIDE, "run_", "."))]


def _texts(datasets: list[Path], prompts: WholePrompts) -> Iterator[tuple[str, str]]:
    """Yield the text of every row with its place, and let whole prompts be looked for in passing."""
    for path in datasets:
        for file in _shards(path):
            for number, row in enumerate(read_rows(file), start=1):
                place = f"{path.name}/{file.name} row {number}"
                prompts.look(row, place)
                yield place, row_text(row)


def _probes(row: dict[str, Any], n: int) -> Iterator[Probe]:
    """Yield a question as it was asked, and every expected answer that is long enough to be known by itself.

    The reference of a conversation's turn is none of these: people give the same answer to many questions.
    """
    name = _name(row)
    asked = [message for message in row["conversation"]["messages"] if message["role"] == "user"]
    answers = tuple(_answers(row["expected"]))
    group = f"{row['task']} {row['group']}" if row["group"] else ""
    question = row_text(asked[-1]["content"]) if asked else ""
    yield Probe(name, row_text(row["conversation"]), question, answers, group)
    stated = {key: value for key, value in row["expected"].items() if key != "reference"}
    for number, answer in enumerate(_answers(stated), start=1):
        if len(split_words(answer)) >= n:
            yield Probe(f"{name}, expected answer {number}", answer, group=group)


def _name(row: dict[str, Any]) -> str:
    return f"{row['task']} {row['id']}"


def _answers(expected: dict[str, Any]) -> Iterator[str]:
    """Yield the texts that a right answer has: not what it must not have."""
    for key, value in expected.items():
        if key not in ("distractors", "language") and not isinstance(value, bool):
            for leaf in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
                if text := row_text(leaf).strip():
                    yield text
