"""Human conversations -> a question for every assistant turn, after the true history."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from puna.evaluation.tasks.grading.extraction.extract import extract, normalize
from puna.evaluation.tasks.grading.extraction.fact import Fact
from puna.evaluation.tasks.grading.extraction.tables import guess_language
from puna.evaluation.tasks.grading.facts import required_facts
from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Conversation, Message

# Longer references, or more new facts, make an essay or a list: other right answers have other facts.
MAX_FACTS = 6
MAX_CHARACTERS = 400
# Number of conversations with a name from which the name belongs to the task.
MIN_RECURRENCES = 3


def recurring_names(conversations: Iterable[Conversation]) -> frozenset[str]:
    """Return the names that the assistant states in several conversations, such as a bank's teams, in lower case.

    Only names of several words count: a single word may be capitalized for other reasons.

    Example:
        >>> recurring_names([answer_of("You are speaking with the Card Support Team.")] * 3)
        frozenset({'card support team'})
    """
    counts = Counter[str]()
    for conversation in conversations:
        contents = [message.content for message in conversation.messages if message.role == "assistant"]
        counts.update({name for content in contents for name in _names(content)})
    return frozenset(name for name, count in counts.items() if count >= MIN_RECURRENCES)


def _names(text: str) -> set[str]:
    facts = extract(text, guess_language(text))
    return {fact.text.casefold() for fact in facts if fact.kind == "name" and " " in fact.text}


def turn_questions(conversation: Conversation, names: Collection[str] = ()) -> Iterator[Question]:
    """Yield a question for every assistant turn: expect the turn's tool call, the turn's facts, or words.

    The rule `facts` grades a short turn with new facts. Names in such a turn must come from a system message, a tool's
    result or `names`, since free words have many right forms. No rule grades other words; a judge can use the
    reference. Turns with several calls give no question.

    Args:
        conversation: A complete conversation.
        names: Recurring names of the task, by `recurring_names`.

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
    """Tell whether every right answer has the facts of the reference."""
    if len(question.expected["reference"]) > MAX_CHARACTERS:
        return False
    sources = [each.content for each in question.conversation.messages if each.role in ("system", "tool")]
    source = normalize("\n".join(sources))
    required = required_facts(question).required
    return 1 <= len(required) <= MAX_FACTS and all(_is_settled(fact, source, names) for fact in required)


def _rivals(question: Question, names: Collection[str]) -> list[str]:
    """Return the wrong recurring names as distractors, if the right answer is a recurring name.

    Distractors fail an answer that lists every team of a bank. An answer may repeat names from prompt or reference.
    """
    right_names = [fact.text.casefold() for fact in required_facts(question).required if fact.kind == "name"]
    if not any(name in names for name in right_names):
        return []
    texts = [*(message.content for message in question.conversation.messages), question.expected["reference"]]
    prompt_text = normalize("\n".join(texts)).casefold()
    return sorted(name for name in names if name not in prompt_text)


def _is_settled(fact: Fact, source: str, names: Collection[str]) -> bool:
    """Reject names without a source, and number words without a unit, as in "a minute or two"."""
    if fact.kind == "name":
        return fact.text in source or fact.text.casefold() in names
    has_unit = any(reading[0] == "number" and reading[1] for reading in fact.readings)
    return fact.kind != "number" or has_unit or any(char.isdigit() for char in fact.text)
