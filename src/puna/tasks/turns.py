"""Conversations that people held -> a question for every turn of the assistant, given the true history before it."""

from collections.abc import Iterator
from dataclasses import replace

from puna.chat.conversation import Conversation, Message
from puna.tasks.grading.extraction.extract import normalize
from puna.tasks.grading.extraction.fact import Fact
from puna.tasks.grading.facts import required_facts
from puna.tasks.question import Question

# A longer reference, or one with more new facts, is an essay or a list: another right answer has other facts.
MAX_FACTS = 6
MAX_CHARACTERS = 400


def turn_questions(conversation: Conversation) -> Iterator[Question]:
    """Ask for each assistant message in turn: the call that was made, the facts that it stated, or words.

    The grade `facts` judges a short turn that states something new, with names only from a system message or a tool's
    result: what people say freely has many right forms. Other words are judged by no rule, and their reference is
    kept for a judge. A turn with several calls is passed over, since a question expects one.
    """
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant" and index and len(message.tool_calls) < 2:
            prompt = replace(conversation, messages=conversation.messages[:index])
            yield _question(f"{conversation.id}/{index}", prompt, message)


def _question(id: str, prompt: Conversation, answer: Message) -> Question:
    if answer.tool_calls:
        call = answer.tool_calls[0]
        return Question(id, prompt, {"name": call.name, "arguments": call.arguments}, "tool_call", prompt.id)
    reference = {"reference": answer.content} if answer.content.strip() else {}
    question = Question(id, prompt, reference, "facts", prompt.id)
    if reference and _has_settled_facts(question):
        return question
    return replace(question, expected={"no_call": True, **reference}, grade="no_call")


def _has_settled_facts(question: Question) -> bool:
    """Tell whether a right answer has just the facts of the reference."""
    if len(question.expected["reference"]) > MAX_CHARACTERS:
        return False
    sources = [each.content for each in question.conversation.messages if each.role in ("system", "tool")]
    source = normalize("\n".join(sources))
    wanted = required_facts(question).required
    return 1 <= len(wanted) <= MAX_FACTS and all(_is_settled(fact, source) for fact in wanted)


def _is_settled(fact: Fact, source: str) -> bool:
    """Leave out names that come from nowhere, and number words without a unit, as in "a minute or two"."""
    if fact.kind == "name":
        return fact.text in source
    has_unit = any(reading[0] == "number" and reading[1] for reading in fact.readings)
    return fact.kind != "number" or has_unit or any(char.isdigit() for char in fact.text)
