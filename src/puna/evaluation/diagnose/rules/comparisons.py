"""Scores and records of a comparison group -> causes of a student below the baseline or start model."""

from puna.evaluation.diagnose.comparison_group import ComparisonGroup
from puna.pipeline.finding import Finding

MOST_FEWER_TOKENS = 0.9
# BUDGET: settings that must be equal for a fair comparison. Other settings may differ between objectives.
# OF_LABELS: settings that a run on stored labels does not need, since the labels hold the rows.
OF_LABELS = ("data", "fresh_identifiers")
BUDGET = ("data", "context", "fresh_identifiers", "precision")


def teacher_not_better(comparison: ComparisonGroup) -> Finding | None:
    """The teacher is not shown to be better than the baseline (without a baseline: the start model)."""
    teacher, other = comparison.teacher, comparison.baseline or comparison.start
    if teacher is None or other is None:
        return None
    difference = comparison.difference(teacher, other)
    if difference.low > 0:
        return None
    verdict = "is worse than" if difference.high < 0 else "is not shown to be better than"
    seen = f"The teacher {teacher.name} {verdict} {other.name} on these questions: {difference}."
    remedy = "Tune the teacher on this task first or take another teacher; ask more questions if the interval is wide."
    return Finding("teacher-not-better", seen, remedy)


def tokenizer_differs(comparison: ComparisonGroup) -> Finding | None:
    """Teacher and student have different tokenizers, and the run aligned no spans."""
    teacher, student = comparison.teacher, comparison.student
    if teacher is None or teacher.tokenizer == student.tokenizer:
        return None
    if student.record is not None and student.record.has("aligned_share"):
        return None
    seen = f"The tokenizer of {teacher.name} is not that of {student.name}."
    remedy = (
        "Distil across tokenizers with aligned spans, train on the teacher's answers, or take the teacher's tokenizer."
    )
    return Finding("tokenizer-differs", seen, remedy)


def chat_differs(comparison: ComparisonGroup) -> Finding | None:
    """Teacher and student have different chat templates."""
    teacher, student = comparison.teacher, comparison.student
    if teacher is None or not (teacher.template and student.template) or teacher.template == student.template:
        return None
    seen = f"The chat template of {teacher.name} is not that of {student.name}."
    remedy = "Run puna doctor on the teacher, and let the teacher answer in its own format (puna answer)."
    return Finding("chat-differs", seen, remedy)


def questions_differ(comparison: ComparisonGroup) -> Finding | None:
    """The questions have system messages, tools or lengths rare in the training text."""
    record = comparison.student.record
    trained = record.facts.get("conversations", {}) if record else {}
    asked = comparison.questions
    if not trained.get("num_looked_at"):
        return None
    seen: list[str] = []
    for name, meaning in (("system", "a system message"), ("tools", "tools")):
        if abs(asked[name] - trained[name]) > 0.8:
            seen.append(f"{asked[name]:.0%} of the questions have {meaning}, {trained[name]:.0%} of the training rows")
    if asked["median"] > trained["longest"]:
        seen.append(f"half of the prompts are longer than {asked['median']:,} tokens, the longest row trained on has "
                    f"{trained['longest']:,}")  # fmt: skip
    if not seen:
        return None
    return Finding(
        "questions-differ", "; ".join(seen).capitalize() + ".", "Train on rows in the form of the questions."
    )


def budget_differs(comparison: ComparisonGroup) -> Finding | None:
    """The baseline's run read more of the data, or different data, than the student's run."""
    if comparison.baseline is None or not (comparison.student.record and comparison.baseline.record):
        return None
    student, baseline = comparison.student.record, comparison.baseline.record
    tokens = [record.rows[-1].get("tokens") or 0 for record in (student, baseline)]
    seen = [f"{name}: {student.config.get(name)} against {baseline.config.get(name)}" for name in BUDGET
            if student.config.get(name) != baseline.config.get(name)
            and not (student.config.get("labels") and name in OF_LABELS)]  # fmt: skip
    if tokens[0] < MOST_FEWER_TOKENS * tokens[1]:
        seen.insert(0, f"tokens read: {tokens[0]:,} against {tokens[1]:,}")
    if not seen:
        return None
    text = f"{comparison.student.name} and {comparison.baseline.name} were trained differently ({'; '.join(seen)})."
    return Finding("budget-differs", text, "Give both runs the same data and the same number of steps, then compare.")
