"""Questions and grading rules. A grading rule serves as evaluation score, reward and filter of generated data."""

from puna.evaluation.tasks.grading.table import GRADES
from puna.evaluation.tasks.question import Grade, Question
from puna.evaluation.tasks.task import Task

__all__ = ["GRADES", "Grade", "Question", "Task"]
