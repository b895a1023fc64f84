"""Grade `refusal`: the answer states in the required words that the information is missing."""

from puna.evaluation.tasks.grading.contains import contains
from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Message


def refusal(question: Question, message: Message) -> Grade:
    """Grade with `contains`; reports show refusals as a separate kind.

    Example:
        >>> question = Question("1", conversation, {"contains": ["does not say"]}, "refusal")
        >>> refusal(question, Message("assistant", "The page does not say.")).score
        1.0
    """
    grade = contains(question, message)
    return Grade(grade.score, grade.reason if grade.score else f"does not refuse: {grade.reason}")
