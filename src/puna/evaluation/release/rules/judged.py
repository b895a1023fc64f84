"""Rule `judged`: the content of the deciding answers was judged, by a rule, a model or a person.

A question with a bare check for an answer of any kind lets any words pass, so the answer counts as unjudged. Every
comparison leaves unjudged answers out. A share of unjudged answers above the configured limit makes a NO-GO.
"""

from collections.abc import Iterator, Mapping, Sequence

from puna.evaluation.release.rules.verdict import Verdict
from puna.evaluation.scores import UNDECIDED, EvaluatedModel

HINT = (
    "State facts that a right answer has, set [evaluate.judge] or a reward model, have people judge (`puna review`), "
    "or ask only what can be judged (evaluate.only_judged)"
)


def judge_judged(suites: Mapping[str, Sequence[EvaluatedModel]], max_unjudged: float) -> Verdict:
    """Compare the share of unjudged questions with the allowed share.

    Args:
        suites: For every suite, the answers of the candidate and of every compared model. A question counts as judged
            if the answers of all models were judged.
        max_unjudged: Largest allowed share of unjudged questions, 0 to 1.

    Example:
        >>> judge_judged({"task": [mine]}, max_unjudged=0.0).remark
        'all 60 answers were judged for what they say'
    """
    reasons = list(_reasons(suites, max_unjudged))
    return Verdict("judged", reasons, _told(suites), hint=HINT if reasons else "")


def unjudged_questions(answers: Sequence[EvaluatedModel]) -> int:
    """Count the questions with an unjudged answer of any model.

    An undecided verdict of a judge counts as unjudged: undecided answers score as wrong, so counting undecided answers
    of the rivals would favor the candidate.

    Example:
        >>> unjudged_questions([mine, teacher])
        60
    """
    judged = set(answers[0].scores).intersection(*(each.scores for each in answers))
    undecided = {
        (row["task"], row["id"])
        for each in answers
        for row in each.rows
        if row.get("judged_by") == "judge" and row["reason"].startswith(UNDECIDED)
    }
    return len(answers[0].rows) - len(judged - undecided)


def _reasons(suites: Mapping[str, Sequence[EvaluatedModel]], max_unjudged: float) -> Iterator[str]:
    for suite, answers in suites.items():
        num_questions, num_unjudged = len(answers[0].rows), unjudged_questions(answers)
        if num_unjudged > max_unjudged * num_questions:
            allowed = f"{max_unjudged:.0%} may go without" if max_unjudged else "every answer has to be"
            yield (
                f"{num_unjudged:,} of {num_questions:,} answers on the {suite} were not judged for what they say "
                f"({allowed})"
            )


def _told(suites: Mapping[str, Sequence[EvaluatedModel]]) -> str:
    numbers = [(len(answers[0].rows), unjudged_questions(answers)) for answers in suites.values()]
    total, unjudged = (sum(column) for column in zip(*numbers, strict=True)) if numbers else (0, 0)
    num_left_out = sum(answers[0].num_left_out for answers in suites.values())
    more = f"; {num_left_out:,} more questions were left out because nothing could judge them" if num_left_out else ""
    if not unjudged:
        return f"all {total:,} answers were judged for what they say{more}" if total else ""
    return f"{total - unjudged:,} of {total:,} answers were judged for what they say{more}"
