"""A question and how its answer is judged: the same function is a score, a reward and a filter of generated data."""

from puna.evaluation.tasks.grading.table import GRADES
from puna.evaluation.tasks.question import Grade, Question
from puna.evaluation.tasks.task import Task

__all__ = ["GRADES", "Grade", "Question", "Task"]
