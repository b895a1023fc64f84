"""Questions of an exam -> answers of null models: models without knowledge of the task.

An exam that a null model passes cannot tell a good model from a bad model. Null models with the same answer to every
question have won public leaderboards (Zheng et al., 2024, arXiv 2410.07137). The null models here are chosen against
the exam itself: the search for the best constant answer includes the exam's own answers. The scores are therefore
upper bounds.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Message, ToolCall, tool_name

FIXED_CONSTANTS = ("Sure.", "Yes.", "No.", "I'm sorry, I don't know.")
FREQUENT_CONSTANTS = 8  # most frequent right answers of the exam, tried as constants
STUFFED_ANSWERS = 20  # joined in one constant, to have a right part for many questions
RANDOM_WORDS = 12
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class NullModel:
    """A model without knowledge of the task, with an answer to every question of an exam.

    `alternatives` holds one or more complete lists of answers; the list with the best score stands for the model.

    Example:
        >>> [model.name for model in null_models(questions, seed=0)]
        ['constant', 'empty', 'question', 'page', 'other', 'random', 'tool']
    """

    name: str
    description: str
    alternatives: list[list[Message]]


def null_models(questions: Sequence[Question], *, seed: int) -> list[NullModel]:
    """Return the null models of an exam; the same questions and seed give the same answers.

    Example:
        >>> questions = [Question("1", conversation, {"contains": ["nine"]})]
        >>> null_models(questions, seed=0)[4].alternatives[0][0].content
        'nine'
    """
    source = random.Random(seed)
    constants = [[answer] * len(questions) for answer in _constants(questions)]
    return [
        NullModel("constant", "gives every question the same answer", constants),
        _each(questions, "empty", "answers nothing", lambda _: Message("assistant")),
        _each(questions, "question", "repeats the question", lambda question: Message("assistant", _asked(question))),
        _each(
            questions, "page", "repeats all that it was given", lambda question: Message("assistant", _all(question))
        ),
        NullModel("other", "gives the right answer to another question", [_others(questions, source)]),
        NullModel("random", "writes random words of the questions", [_random_words(questions, source)]),
        _each(questions, "tool", "calls the first tool without arguments", _first_tool),
    ]


def right_answer(question: Question) -> Message | None:
    """Return the answer described by `expected`; None where the question expects no certain words.

    Example:
        >>> right_answer(Question("1", conversation, {"contains": ["24.90"]})).content
        '24.90'
    """
    expected = question.expected
    if "name" in expected:
        return Message("assistant", tool_calls=(ToolCall(expected["name"], expected["arguments"]),))
    if "contains" in expected:
        return Message("assistant", " ".join(expected["contains"]))
    text = expected.get("exact") or expected.get("reference")
    return Message("assistant", text) if text else None


def _each(
    questions: Sequence[Question], name: str, description: str, answer: Callable[[Question], Message]
) -> NullModel:
    return NullModel(name, description, [[answer(question) for question in questions]])


def _constants(questions: Sequence[Question]) -> Iterator[Message]:
    """Yield the constants to try: fixed texts, the exam's most frequent answers, and many answers joined."""
    yield from (Message("assistant", text) for text in FIXED_CONSTANTS)
    answers = [answer for question in questions if (answer := right_answer(question))]
    by_key = {repr(answer): answer for answer in answers}
    for key, _ in Counter(map(repr, answers)).most_common(FREQUENT_CONSTANTS):
        yield by_key[key]
    texts = [text for text, _ in Counter(each.content for each in answers if each.content).most_common(STUFFED_ANSWERS)]
    if texts:
        yield Message("assistant", " ".join(texts))


def _asked(question: Question) -> str:
    """Return the last message of the user, or the last message of any role if no user speaks."""
    messages = question.conversation.messages
    asked = [message.content for message in messages if message.role == "user"]
    return asked[-1] if asked else messages[-1].content


def _all(question: Question) -> str:
    return "\n".join(message.content for message in question.conversation.messages if message.content)


def _others(questions: Sequence[Question], source: random.Random) -> list[Message]:
    """Give every question the right answer of a different question, from a different group where possible.

    The questions are sorted by group and shifted by half the list. The shift leaves every group, unless one group has
    more than half of the questions. A question without a right answer contributes the text of the question.
    """
    order = list(range(len(questions)))
    source.shuffle(order)
    order.sort(key=lambda index: questions[index].group)
    shift = len(order) // 2
    others = {index: questions[order[(rank + shift) % len(order)]] for rank, index in enumerate(order)}
    return [
        right_answer(others[index]) or Message("assistant", _asked(others[index])) for index in range(len(questions))
    ]


def _random_words(questions: Sequence[Question], source: random.Random) -> list[Message]:
    words = sorted({word for question in questions for word in _WORD.findall(_all(question))}) or ["word"]
    return [Message("assistant", " ".join(source.choices(words, k=RANDOM_WORDS))) for _ in questions]


def _first_tool(question: Question) -> Message:
    if not question.conversation.tools:
        return Message("assistant")
    return Message("assistant", tool_calls=(ToolCall(tool_name(question.conversation.tools[0]), {}),))
