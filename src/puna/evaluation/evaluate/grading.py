"""Questions and answers -> judgements: by the question's rule, a judge, a reward model, or a person.

`Grader.grade` judges any message for any question, also a message that no checkpoint wrote. The question's rule comes
first; a judge or reward model judges the words that no rule judges. A person's label overrides every other judgement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from puna.evaluation.evaluate.judges.agreement import Agreement, measure_agreement
from puna.evaluation.evaluate.judges.judging import Case, Judge, RewardJudge, Ruling
from puna.evaluation.scores import UNDECIDED, group_of
from puna.evaluation.tasks.grading.similarity import chrf, reference_of
from puna.evaluation.tasks.labels import Labels, answer_key
from puna.evaluation.tasks.question import Grade, Question
from puna.evaluation.tasks.task import Task
from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Reply
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run

JudgedBy = Literal["rule", "judge", "reward", "person", ""]
HOW_TO_LABEL = (
    "Evaluate without a judge, let a person judge a sample of its answers with `puna review`, and name the file in "
    "evaluate.labels"
)


class Item(NamedTuple):
    """A question and the question's task.

    Example:
        >>> Item(task, question).task.name
        'shop'
    """

    task: Task
    question: Question


class Judgement(NamedTuple):
    """The grade of an answer. `judged_by` is "" for unjudged content; `evidence` is a judge's quote.

    Example:
        >>> Judgement(Grade(1.0, "says the same time"), "judge", "At nine.").to_json()["judged_by"]
        'judge'
    """

    grade: Grade
    judged_by: JudgedBy = "rule"
    evidence: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a row of conversations-NAME.jsonl."""
        evidence = {"evidence": self.evidence} if self.evidence else {}
        return {
            "score": self.grade.score,
            "parts": self.grade.parts,
            "reason": self.grade.reason,
            "judged": self.grade.is_judged,
            "judged_by": self.judged_by,
            **evidence,
        }


@dataclass(frozen=True)
class Grader:
    """Judges answers with the tasks' rules and the configured judge or reward model, without human labels.

    Example:
        >>> Grader().grade([Item(task, question)], [Message("assistant", "It costs 5.")])[0].grade.score
        1.0
    """

    judge: Judge | RewardJudge | None = None

    def grade(self, items: Sequence[Item], messages: Sequence[Message]) -> list[Judgement]:
        """Judge one message per item, in the order of the items."""
        grades = [item.task.grade(item.question, message) for item, message in zip(items, messages, strict=True)]
        judgements = [Judgement(grade, "rule" if grade.is_judged else "") for grade in grades]
        if self.judge is None:
            return judgements
        open_ = [at for at, grade in enumerate(grades) if not grade.is_judged]
        judgeable = [at for at in open_ if grades[at].score > 0]
        rulings = self.judge.rule([Case(items[at].task.name, items[at].question, messages[at]) for at in judgeable])
        for at in open_:  # A call or an empty answer is wrong without a judge's ruling.
            judgements[at] = Judgement(replace(grades[at], is_judged=True), "rule")
        for at, ruling in zip(judgeable, rulings, strict=True):
            judgements[at] = self._judgement(ruling)
        return judgements

    def _judgement(self, ruling: Ruling) -> Judgement:
        is_reward = isinstance(self.judge, RewardJudge)
        if is_reward and ruling.is_right is None:
            return Judgement(Grade(0.0, ruling.reason, is_judged=False), "")
        grade = Grade(float(ruling.is_right is True), ruling.reason)
        return Judgement(grade, "reward" if is_reward else "judge", ruling.evidence)


def judge_with_labels(
    grader: Grader, labels: Labels, items: Sequence[Item], messages: Sequence[Message]
) -> list[Judgement]:
    """Judge one message per item; a human label of the same answer takes precedence.

    An answer with disagreeing reviewers stays unjudged.

    Example:
        >>> labels = Labels([Label("shop", "1", answer.to_json(), True, "ada", "2026-12-01T09:30:00+00:00")])
        >>> [each.judged_by for each in judge_with_labels(Grader(), labels, items, [answer])]
        ['person']
    """
    disputed = {answer_key(each.task, each.id, each.answer) for each in labels.disagreements}
    judgements: dict[int, Judgement] = {}
    for at, (item, message) in enumerate(zip(items, messages, strict=True)):
        name, id, answer = item.task.name, item.question.id, message.to_json()
        verdict = labels.verdict(name, id, answer)
        if verdict is None and answer_key(name, id, answer) not in disputed:
            continue
        rule = item.task.grade(item.question, message)
        if verdict is None:
            grade = replace(rule, reason="reviewers disagree about this answer", is_judged=False)
            judgements[at] = Judgement(grade, "")
        else:
            reason = f"a person found it {'right' if verdict else 'wrong'}"
            judgements[at] = Judgement(Grade(float(verdict), reason, rule.parts), "person")
    rest = [at for at in range(len(items)) if at not in judgements]
    graded = grader.grade([items[at] for at in rest], [messages[at] for at in rest])
    judgements |= zip(rest, graded, strict=True)
    return [judgements[at] for at in range(len(items))]


def grade_replies(
    grader: Grader, labels: Labels, items: Sequence[Item], replies: Sequence[Reply]
) -> list[dict[str, Any]]:
    """Return the lines of conversations-NAME.jsonl, with all data for judging the answers again.

    Example:
        >>> replies = [Reply(Message("assistant", "At nine."))]
        >>> grade_replies(Grader(), Labels([]), [Item(task, question)], replies)[0]["score"]
        1.0
    """
    judgements = judge_with_labels(grader, labels, items, [reply.message for reply in replies])
    return [_row(*each) for each in zip(items, replies, judgements, strict=True)]


def _row(item: Item, reply: Reply, judgement: Judgement) -> dict[str, Any]:
    grade = judgement.grade
    # The grade of an empty answer names the parts; a failure has all parts at 0.
    if reply.failure:
        grade = replace(grade, score=0.0, reason=reply.failure, parts=dict.fromkeys(grade.parts, 0.0))
    elif reply.is_truncated and grade.score < 1:
        grade = replace(grade, reason=f"{grade.reason}; cut off after {reply.num_tokens} tokens")
    return {
        "task": item.task.name,
        **item.question.to_json(),
        "answer": reply.message.to_json(),
        **judgement._replace(grade=grade).to_json(),
        "similarity": similarity(item.question, reply.message),
        "finish_reason": reply.finish_reason,
        "num_tokens": reply.num_tokens,
    }


def is_judged_by_rule(item: Item) -> bool:
    """Tell whether the rule of a question judges the content of an answer.

    Example:
        >>> is_judged_by_rule(Item(task, Question("1", conversation, {"contains": ["nine"]})))
        True
        >>> is_judged_by_rule(Item(task, Question("2", conversation, {"no_call": True}, "no_call")))
        False
    """
    return item.task.grade(item.question, Message("assistant")).is_judged


def labelled_cases(labels: Labels, items: Mapping[tuple[str, str], Item]) -> list[tuple[Case, bool]]:
    """Return the labelled answers in need of a judge, words that no rule judges, with the human verdicts.

    Example:
        >>> [verdict for _, verdict in labelled_cases(labels, {("shop", "1"): Item(task, question)})]
        [True]
    """
    cases: dict[str, tuple[Case, bool]] = {}
    for label in labels:
        item = items.get((label.task, label.id))
        verdict = labels.verdict(label.task, label.id, label.answer)
        if item is None or verdict is None:
            continue
        (answer,) = Conversation.from_json({"messages": [label.answer]}).messages
        grade = item.task.grade(item.question, answer)
        if not grade.is_judged and grade.score > 0:
            cases[repr(label.key)] = Case(item.task.name, item.question, answer), verdict
    return list(cases.values())


def agreement_with(judge: Judge | RewardJudge, cases: Sequence[tuple[Case, bool]]) -> Agreement:
    """Let a judge rule on labelled answers, and measure the agreement with the labels.

    Example:
        >>> agreement_with(judge, labelled_cases(labels, items)).share
        1.0
    """
    rulings = judge.rule([case for case, _ in cases])
    decided = [
        (case, label, ruling.is_right is True)
        for (case, label), ruling in zip(cases, rulings, strict=True)
        if ruling.is_right is not None or isinstance(judge, Judge)
    ]
    groups = [group_of(case.task, case.question.id, case.question.group) for case, _, _ in decided]
    return measure_agreement([verdict for _, _, verdict in decided], [label for _, label, _ in decided], groups)


def calibrate(
    judge: Judge | RewardJudge | None, labels: Labels, tasks: Sequence[Task], run: Run
) -> tuple[Grader, dict[str, Any]]:
    """Measure a judge's agreement with people before any other use of the judge.

    Returns:
        The grader, and the content of judge.json (empty without a judge).

    Raises:
        ConfigError: A judge has too few labels, or labels of one kind only, or agrees too little with people.

    Example:
        >>> grader, judge_json = calibrate(None, Labels([]), [task], run)
        >>> grader.judge is None, judge_json
        (True, {})
    """
    items = {(task.name, question.id): Item(task, question) for task in tasks for question in task.questions}
    if len(labels):
        num_known = len({label.key for label in labels if (label.task, label.id) in items})
        disputed = f", who disagree about {len(labels.disagreements):,}" if labels.disagreements else ""
        run.log(f"{num_known:,} of {len(labels):,} labelled answers are to questions of these tasks{disputed}")
    if judge is None:
        return Grader(), {}
    cases = labelled_cases(labels, items)
    if isinstance(judge, Judge):
        require_labels(judge, cases)
    agreement = agreement_with(judge, cases) if cases else None
    run.log(f"{judge.name} {agreement or 'was compared with no human label'}")
    if isinstance(judge, Judge) and agreement:
        require_agreement(judge, agreement)
    judge.close()
    agreements = {"labels": len(cases), "agreement": agreement and agreement._asdict()}
    return Grader(judge), {**judge.to_json(), **agreements}


def num_undecided(rows: Sequence[dict[str, Any]]) -> int:
    """Count the answers that a judge left undecided.

    Example:
        >>> num_undecided([{"judged_by": "judge", "reason": "undecided: the judge's two orders disagree"}])
        1
    """
    return sum(row["judged_by"] == "judge" and row["reason"].startswith(UNDECIDED) for row in rows)


def require_labels(judge: Judge, cases: Sequence[tuple[Case, bool]]) -> None:
    """Raise ConfigError if the labels are too few to calibrate a judge, or are all of one kind."""
    least = judge.settings.min_labels
    if len(cases) < least:
        given = f"a judge with {len(cases):,} human labels of answers in words"
        raise ConfigError(given, expected=f"at least {least:,} (judge.min_labels)", hint=HOW_TO_LABEL)
    if len({label for _, label in cases}) < 2:
        (only,) = {label for _, label in cases}
        given = f"{len(cases):,} human labels that all say {'right' if only else 'wrong'}"
        hint = "A judge that always says so would agree with all of them. Label answers of a weaker model as well"
        raise ConfigError(given, expected="labels of right and of wrong answers", hint=hint)


def require_agreement(judge: Judge, agreement: Agreement) -> None:
    """Raise ConfigError if a judge agrees too little with people."""
    least = judge.settings.min_agreement
    if agreement.share < least or agreement.kappa <= 0:
        raise ConfigError(
            f"{judge.name} {agreement}",
            expected=f"at least {least:.0%} (judge.min_agreement), and a kappa above 0",
            hint="Take a stronger judge or a clearer judge.rubric, or let people judge: `puna review`",
        )


def similarity(question: Question, message: Message) -> float | None:
    """Return chrF of an answer to the reference; None for a question without a reference.

    Example:
        >>> similarity(Question("1", conversation, {"reference": "At nine."}), Message("assistant", "At nine."))
        1.0
    """
    reference = reference_of(question)
    return round(chrf(reference, message.content), 4) if reference else None
