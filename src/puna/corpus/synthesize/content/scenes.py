"""Questions with answers -> turns of a conversation, with one expectation per assistant message."""

from collections.abc import Sequence
from random import Random
from typing import Any, Literal, NamedTuple

from puna.corpus.synthesize.content.talk import CLOSERS, NOT_SAID, OPENERS, TALK
from puna.formats.chat.conversation import Conversation, Message

JOINED = ("{} {}", "{} And: {}", "{} I also want to know: {}", "Two questions: {} {}", "{} Also: {}")


class Asked(NamedTuple):
    """A question with an answer. A right answer contains all `needles` and no `distractors`.

    Example:
        >>> Asked("hours", "When do you open?", "At nine.", needles=("nine",)).kind
        'hours'
    """

    kind: str
    question: str
    answer: str
    needles: tuple[str, ...]
    distractors: tuple[str, ...] = ()


class Expected(NamedTuple):
    """Grading of one assistant message: kind of turn, name of the grade, and values for the grade.

    Example:
        >>> Expected("hours", "contains", {"contains": ["nine"]}).grade
        'contains'
    """

    kind: str
    grade: Literal["contains", "tool_call", "refusal"]
    values: dict[str, Any]  # becomes Question.expected


class Scene(NamedTuple):
    """A conversation with one expectation per assistant message, in order.

    Example:
        >>> turn = make_turn(Asked("hours", "When do you open?", "At nine.", ("nine",)))
        >>> len(make_scene("We open at nine.", [turn], identifier="1", metadata={}).expected)
        1
    """

    conversation: Conversation
    expected: tuple[Expected, ...]


class Turn(NamedTuple):
    """A message of a customer and all messages before the next message of the customer.

    Example:
        >>> make_turn(Asked("hours", "When do you open?", "At nine.", ("nine",))).messages[1].content
        'At nine.'
    """

    messages: tuple[Message, ...]
    expected: tuple[Expected, ...]


def make_turn(asked: Asked, *, question: str = "") -> Turn:
    """Return the turn of a question; a non-empty `question` replaces the wording.

    Example:
        >>> turn = make_turn(Asked("hours", "When do you open?", "At nine.", ("nine",)))
        >>> turn.expected[0].values
        {'contains': ['nine']}
    """
    values: dict[str, Any] = {"contains": list(asked.needles)}
    if asked.distractors:
        values["distractors"] = list(asked.distractors)
    messages = (Message("user", question or asked.question), Message("assistant", asked.answer))
    return Turn(messages, (Expected(asked.kind, "refusal" if asked.kind == "refusal" else "contains", values),))


def join_asked(several: Sequence[Asked], rng: Random) -> Asked:
    """Join several questions into one message; the joined answer holds all answers in order.

    Example:
        >>> asked = [Asked("hours", "Open?", "At nine.", ("nine",)), Asked("price", "Price?", "It is 5.", ("5",))]
        >>> join_asked(asked, Random(0)).answer
        'At nine. It is 5.'
    """
    question = several[0].question
    for asked in several[1:]:
        question = rng.choice(JOINED).format(question, asked.question)
    answer = " ".join(asked.answer for asked in several)
    others = {other for asked in several for other in asked.distractors if other not in answer}
    needles = tuple(dict.fromkeys(needle for asked in several for needle in asked.needles))
    return Asked(f"{len(several)} facts", question, answer, needles, tuple(sorted(others)))


def draw_spelling(question: str, rng: Random) -> str:
    """Spell one question in twelve like hurried typing: lower case, no punctuation at the end.

    Example:
        >>> draw_spelling("When do you open?", Random(0))
        'When do you open?'
    """
    return question.lower().rstrip("?.!") if rng.random() < 1 / 12 else question


def draw_talk(kind: str, name: str, rng: Random) -> Asked:
    """Draw a small-talk message of the given kind, and the reply.

    Example:
        >>> draw_talk("bye", "Belmar", Random(0)).kind
        'talk'
    """
    talk = TALK[kind]
    needles = tuple(needle.format(name=name) for needle in talk.needles)
    return Asked("talk", rng.choice(talk.said), rng.choice(talk.replies).format(name=name), needles, (NOT_SAID,))


def add_talk(turns: Sequence[Turn], name: str, talk_share: float, rng: Random) -> list[Turn]:
    """Put small talk before and after the turns; both places independently, with probability `talk_share`.

    Example:
        >>> turn = make_turn(Asked("hours", "When do you open?", "At nine.", ("nine",)))
        >>> len(add_talk([turn], "Belmar", 1.0, Random(0)))
        3
    """
    before = [make_turn(draw_talk(rng.choice(OPENERS), name, rng))] if rng.random() < talk_share else []
    after = [make_turn(draw_talk(rng.choice(CLOSERS), name, rng))] if rng.random() < talk_share else []
    return [*before, *turns, *after]


def make_scene(
    system: str, turns: Sequence[Turn], *, identifier: str, metadata: dict[str, Any], environment: str = ""
) -> Scene:
    """Join turns into a conversation; a non-empty `system` becomes the system message.

    Example:
        >>> turn = make_turn(Asked("hours", "When do you open?", "At nine.", ("nine",)))
        >>> scene = make_scene("We open at nine.", [turn], identifier="1", metadata={})
        >>> [message.role for message in scene.conversation.messages]
        ['system', 'user', 'assistant']
    """
    expected = tuple(each for turn in turns for each in turn.expected)
    messages = tuple(message for turn in turns for message in turn.messages)
    kind = "+".join(dict.fromkeys(each.kind for each in expected))
    if system:
        messages = (Message("system", system), *messages)
    conversation = Conversation(messages, environment=environment, id=identifier, metadata={"kind": kind, **metadata})
    return Scene(conversation, expected)
