"""Conversations that people held -> a question for every turn of the assistant, given the true history before it."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from puna.evaluation.tasks.grading.extraction.extract import extract, normalize
from puna.evaluation.tasks.grading.extraction.fact import Fact
from puna.evaluation.tasks.grading.extraction.tables import guess_language
from puna.evaluation.tasks.grading.facts import required_facts
from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Conversation, Message

# A longer reference, or one with more new facts, is an essay or a list: another right answer has other facts.
MAX_FACTS = 6
MAX_CHARACTERS = 400
# Conversations that state a name before it counts as one of the task's own.
MIN_RECURRENCES = 3


def recurring_names(conversations: Iterable[Conversation]) -> frozenset[str]:
    """Return the names that the assistant states in several conversations, such as a bank's teams, in small letters.

    Only names of several words count, since a single word is capitalized for other reasons too.

    Example:
        >>> recurring_names([answer_of("You are speaking with the Card Support Team.")] * 3)
        frozenset({'card support team'})
    """
    counts = Counter[str]()
    for conversation in conversations:
        said = [message.content for message in conversation.messages if message.role == "assistant"]
        counts.update({name for content in said for name in _names(content)})
    return frozenset(name for name, count in counts.items() if count >= MIN_RECURRENCES)


def _names(text: str) -> set[str]:
    facts = extract(text, guess_language(text))
    return {fact.text.casefold() for fact in facts if fact.kind == "name" and " " in fact.text}


def turn_questions(conversation: Conversation, names: Collection[str] = ()) -> Iterator[Question]:
    """Ask for each assistant message in turn: the call that was made, the facts that it stated, or words.

    The grade `facts` judges a short turn that states something new, with names only from a system message, a tool's
    result or `names`, those that recur in the task: what people say freely has many right forms. Other words are
    judged by no rule, and their reference is kept for a judge. A turn with several calls is passed over, since a
    question expects one.

    Example:
        >>> conversation = Conversation((Message("user", "Price?"), Message("assistant", "It costs 5 euros.")))
        >>> [question.grade for question in turn_questions(conversation)]
        ['facts']
    """
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant" and index and len(message.tool_calls) < 2:
            prompt = replace(conversation, messages=conversation.messages[:index])
            yield _question(f"{conversation.id}/{index}", prompt, message, names)


def _question(id: str, prompt: Conversation, answer: Message, names: Collection[str]) -> Question:
    if answer.tool_calls:
        call = answer.tool_calls[0]
        return Question(id, prompt, {"name": call.name, "arguments": call.arguments}, "tool_call", prompt.id)
    reference = {"reference": answer.content} if answer.content.strip() else {}
    question = Question(id, prompt, reference, "facts", prompt.id)
    if reference and _has_settled_facts(question, names):
        rivals = _rivals(question, names)
        return replace(question, expected=question.expected | ({"distractors": rivals} if rivals else {}))
    return replace(question, expected={"no_call": True, **reference}, grade="no_call")


def _has_settled_facts(question: Question, names: Collection[str]) -> bool:
    """Tell whether a right answer has just the facts of the reference."""
    if len(question.expected["reference"]) > MAX_CHARACTERS:
        return False
    sources = [each.content for each in question.conversation.messages if each.role in ("system", "tool")]
    source = normalize("\n".join(sources))
    wanted = required_facts(question).required
    return 1 <= len(wanted) <= MAX_FACTS and all(_is_settled(fact, source, names) for fact in wanted)


def _rivals(question: Question, names: Collection[str]) -> list[str]:
    """Return the recurring names that make an answer wrong, where the right answer is a recurring name.

    An answer that lists every team of a bank knows none. Names in the prompt or in the reference may be repeated.
    """
    wanted = [fact.text.casefold() for fact in required_facts(question).required if fact.kind == "name"]
    if not any(name in names for name in wanted):
        return []
    said = [*(message.content for message in question.conversation.messages), question.expected["reference"]]
    known = normalize("\n".join(said)).casefold()
    return sorted(name for name in names if name not in known)


def _is_settled(fact: Fact, source: str, names: Collection[str]) -> bool:
    """Leave out names that come from nowhere, and number words without a unit, as in "a minute or two"."""
    if fact.kind == "name":
        return fact.text in source or fact.text.casefold() in names
    has_unit = any(reading[0] == "number" and reading[1] for reading in fact.readings)
    return fact.kind != "number" or has_unit or any(char.isdigit() for char in fact.text)
