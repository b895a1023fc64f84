"""Grade `facts`: the answer states the facts of the reference, and no foreign number, date or address.

A required fact is new: the fact does not stand in the last message of the user. An answer that repeats the question
thus states no required fact. A fact of the answer from neither the reference nor the last message is a contradiction:
"24.90 or 4.90" is wrong for a price of 24.90, and a whole page is wrong. The grade ignores words around a fact, for
example "not".
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from puna.evaluation.tasks.grading.extraction.extract import extract, normalize
from puna.evaluation.tasks.grading.extraction.fact import Fact, covers, is_compatible
from puna.evaluation.tasks.grading.extraction.tables import LETTER, guess_language
from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Conversation, Message

# Maximum characters of an answer, or twice the length of the reference: longer answers are dumps, and slow to read.
MAX_CHARACTERS = 10_000


class Required(NamedTuple):
    """The required facts and the allowed facts of an answer.

    Example:
        >>> [fact.text for fact in Required(list(extract("It costs 5 euros.")), []).required]
        ['5 euros']
    """

    required: list[Fact]
    known: list[Fact]


def facts(question: Question, message: Message) -> Grade:
    """Require every new fact of the reference, or the explicit `facts`; forbid `distractors` and facts from elsewhere.

    Example:
        >>> question = Question("1", conversation, {"reference": "It costs 24.90 euros."}, "facts")
        >>> facts(question, Message("assistant", "The price is 24.90 €.")).score
        1.0
    """
    if message.tool_calls:
        return Grade(0.0, f"calls {message.tool_calls[0].name} instead of answering")
    longest = max(MAX_CHARACTERS, 2 * len(question.expected["reference"]))
    if len(message.content) > longest:
        return Grade(0.0, f"has {len(message.content):,} characters, more than the {longest:,} that are read")
    language = _language(question)
    expected_facts = required_facts(question)
    answer = normalize(message.content)
    stated = extract(answer, language)
    missing = [fact.text for fact in expected_facts.required if not _is_in(fact, answer, stated)]
    wrong = [fact.text for fact in stated if fact.is_exclusive and not is_compatible(fact, expected_facts.known)]
    wrong += [text for text in question.expected.get("distractors", ()) if _is_in(_phrase(text), answer, stated)]
    complaints = [f"lacks {text!r}" for text in dict.fromkeys(missing)]
    complaints += [f"has {text!r}, which the reference does not have" for text in dict.fromkeys(wrong)]
    return Grade(0.0, ", ".join(complaints)) if complaints else Grade(1.0, "has the facts of the reference")


def required_facts(question: Question) -> Required:
    """Draw the facts of a question's reference.

    Explicit `facts` are all required if any explicit fact is new, else no fact is required. Without explicit `facts`,
    every new fact of the reference with `is_required` is required.

    Returns:
        The required facts, empty if no required fact is new, and the allowed facts of an answer.

    Example:
        >>> question = Question("1", conversation, {"reference": "It costs 24.90 euros."}, "facts")
        >>> [fact.text for fact in required_facts(question).required]
        ['24.90 euros']
    """
    expected = question.expected
    explicit = tuple(expected.get("facts", ()))
    return _draw(expected["reference"], explicit, _last_user_message(question.conversation), _language(question))


# An evaluation grades many answers to one question: a checkpoint's, and those of every null model.
@lru_cache(maxsize=4096)
def _draw(reference: str, texts: tuple[str, ...], question: str, language: str) -> Required:
    question_text = normalize(question)
    asked_facts = extract(question_text, language)
    drawn = extract(reference, language)
    explicit = [fact for text in texts for fact in _explicit(text, language)]
    candidates = explicit or [fact for fact in drawn if fact.is_required]
    new = [fact for fact in candidates if not _is_in(fact, question_text, asked_facts)]
    required = explicit if explicit and new else new
    return Required(list({fact.readings: fact for fact in required}.values()), [*drawn, *explicit, *asked_facts])


def _language(question: Question) -> str:
    reference = question.expected["reference"]
    question_text = _last_user_message(question.conversation)
    return question.expected.get("language") or guess_language(f"{reference} {question_text}")


def _last_user_message(conversation: Conversation) -> str:
    return next((message.content for message in reversed(conversation.messages) if message.role == "user"), "")


def _explicit(text: str, language: str) -> Sequence[Fact]:
    """Return the facts of an explicit text; a text without facts is a required phrase."""
    drawn = [fact._replace(is_required=True) for fact in extract(text, language) if fact.kind != "name"]
    return drawn or [_phrase(text)]


def _phrase(text: str) -> Fact:
    words = " ".join(normalize(text).casefold().split())
    return Fact("phrase", text, frozenset([("phrase", words)]), is_exclusive=False)


def _is_in(fact: Fact, text: str, stated: Sequence[Fact]) -> bool:
    """Tell whether a text with the facts `stated` has a fact; names and phrases match as whole words."""
    if fact.kind not in ("name", "phrase"):
        return any(covers(each, fact) for each in stated)
    folded = " ".join(text.casefold().split())
    return any(
        re.search(rf"(?<![{LETTER}\d]){re.escape(words)}(?:'s)?(?![{LETTER}\d])", folded) for _, words in fact.readings
    )
