"""Grade `exact`: the answer equals the expected text."""

from puna.evaluation.tasks.grading.contains import fold
from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Message


def exact(question: Question, message: Message) -> Grade:
    """Require the answer to equal `exact`, up to white space and the shapes of quotes, dashes and digits.

    Example:
        >>> exact(Question("1", conversation, {"exact": "Yes."}), Message("assistant", " Yes. ")).score
        1.0
    """
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name} instead of answering")
    if fold(message.content) == fold(question.expected["exact"]):
        return Grade(1.0, "is the expected answer")
    return Grade(0.0, f"is not {question.expected['exact']!r}")
