"""A model's lineage and test questions -> the test questions within the training data (leaks).

data/overlap compares the texts. The search skips data for measurements only (receipts, validation losses), since
measurements leave no trace in the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.data.overlap.ngrams import OverlapReport, Probe, find_overlaps, row_text, split_words
from puna.data.shards import SUFFIXES, read_rows
from puna.evaluation.release.facts import DATASETS, datasets_read, is_border, name_of
from puna.evaluation.release.overlap.whole_prompts import WholePrompts
from puna.evaluation.release.terms import Node, Step

# Stage -> roles of data that the stage only measures on; "" stands for every stage.
MEASURED = {"": {"validation"}, "quantize": {"data"}, "prune": {"data"}, "merge": {"data"}, "ingest": {"apart_from"}}
# Files of a dataset that no stage trains on.
ASIDE = ("rejected", "questions")


@dataclass(frozen=True)
class Leaks:
    """Result of the search for test questions in training data.

    Attributes:
        report: Found questions and answers, with the rows.
        datasets: Names of the searched datasets.
        unread: Names of missing, changed or textless datasets of the lineage, with the reason.
        measured: Names of datasets for measurements only.
        elsewhere: Names of missing training datasets of an imported model, from before the import.
        num_questions: Number of test questions.
        num_sought: Number of questions in the search.
        num_short: Number of short questions in the search. A short question counts only as a whole prompt or beside the
            right answer.

    Example:
        >>> find_leaks(read_lineage(Path("build/model")), rows, n=13, share=0.5).describe(allowed=0)
        'all 60 questions were searched for in the training data; none was found'
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
        """Number of questions with enough words for a search by n-grams."""
        return self.num_sought - self.num_short

    @property
    def aside(self) -> str:
        """Clause about short questions for a sentence; "" without short questions."""
        short, rest = self.num_short, self.num_questions - self.num_sought
        clauses = [f", {short:,} shorter ones only as a whole prompt or beside their right answers"] if short else []
        return "".join([*clauses, *([f", {rest:,} of too few words not at all"] if rest else [])])

    def describe(self, allowed: int) -> str:
        """Return a sentence with the numbers of questions in the search and found questions."""
        number, num_found = self.num_questions, len(self.report.found)
        if num_found:
            return f"{num_found:,} test questions or answers were found in the training data; {allowed:,} are allowed"
        if not self.datasets:
            return "no training data is available for a search for test questions"
        if not self.num_sought:
            return f"none of {number:,} questions was long enough for a search in the training data"
        if self.num_long == number:
            return f"all {number:,} questions were searched for in the training data; none was found"
        long = f"{self.num_long:,} of {number:,} questions were long enough for a search in the training data"
        return f"{long}{self.aside}; none was found"


def find_leaks(tree: Node, rows: list[dict[str, Any]], *, n: int, share: float) -> Leaks:
    """Search a model's training data for the questions and expected answers of an evaluation.

    Args:
        tree: Lineage of the model.
        rows: Rows of conversations-NAME.jsonl.
        n: Number of words per n-gram.
        share: Least share of a question's n-grams in a single row for a found question.
    """
    trained: list[Path] = []
    unread: list[str] = []
    measured: list[str] = []
    elsewhere: list[str] = []
    since_imports = datasets_read(_since_imports(tree))
    for path, steps in datasets_read(tree).items():
        states = {step.node["state"] for step in steps}
        if all(map(_only_measures, steps)):
            measured.append(name_of(path))
        elif states == {"missing"} and path not in since_imports:
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
    """Return a lineage without the ancestors of published models.

    An import of a stage's own output only changes the format, and keeps the ancestors.
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
    """Yield the text and location of every row; `prompts` searches the same rows in passing."""
    for path in datasets:
        for file in _shards(path):
            for number, row in enumerate(read_rows(file), start=1):
                location = f"{path.name}/{file.name} row {number}"
                prompts.look(row, location)
                yield location, row_text(row)


def _probes(row: dict[str, Any], n: int) -> Iterator[Probe]:
    """Yield the question of a row, and every expected answer of at least n words.

    A reference is no separate probe: people give the same answer to many questions.
    """
    name = _name(row)
    user_messages = [message for message in row["conversation"]["messages"] if message["role"] == "user"]
    answers = tuple(_answers(row["expected"]))
    group = f"{row['task']} {row['group']}" if row["group"] else ""
    question = row_text(user_messages[-1]["content"]) if user_messages else ""
    yield Probe(name, row_text(row["conversation"]), question, answers, group)
    stated = {key: value for key, value in row["expected"].items() if key != "reference"}
    for number, answer in enumerate(_answers(stated), start=1):
        if len(split_words(answer)) >= n:
            yield Probe(f"{name}, expected answer {number}", answer, group=group)


def _name(row: dict[str, Any]) -> str:
    return f"{row['task']} {row['id']}"


def _answers(expected: dict[str, Any]) -> Iterator[str]:
    """Yield the required texts of a right answer, without distractors."""
    for key, value in expected.items():
        if key not in ("distractors", "language") and not isinstance(value, bool):
            for leaf in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
                if text := row_text(leaf).strip():
                    yield text
