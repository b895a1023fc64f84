"""A row with a preference pair in a known layout -> the fields of a preference, and the name of the layout.

Answers are messages or texts, after a prompt or after two copies of the dialogue. Scores do not become strengths.
"""

from typing import Any, cast

from puna.corpus.ingest.spellings.columns import Row, beside, first_given, has, is_given, with_history, with_system
from puna.corpus.ingest.spellings.dialogues import LISTS, PAIRS, Answers, Dialogue, read_question
from puna.corpus.ingest.spellings.messages import ROLES, Messages, read_messages
from puna.corpus.ingest.spellings.transcripts import split_turns
from puna.data.preference import ANSWERS, SETTINGS
from puna.formats.chat.conversation import is_blank
from puna.pipeline.errors import ChatError, DataError

OWN = {"edited", "strength", "id", "metadata", *SETTINGS} - {"tools"}
# Columns with the prompt of a pair, in order of precedence.
PROMPTS = ("prompt", "question", "instruction", "query", *LISTS, "input")
_ADDITIONS = {"instruction": "input"}
NAMES = ("chosen", "rejected")
_BEFORE = ("system", "user")


def read_preference(row: Row) -> Dialogue:
    """Read a row with a preference pair; `fields` suit Preference.from_json.

    Raises:
        DataError: The row holds no preference pair.
        ChatError: A field is unreadable or contradicts the dialogue.

    Example:
        >>> read_preference({"question": "Open?", "chosen": "Until six.", "rejected": "No."}).fields["prompt"]
        [{'role': 'user', 'content': 'Open?'}]
    """
    spelling = next((each for each in PAIRS if has(row, each.better) and has(row, each.worse)), None)
    if spelling is None:
        missing = next((name for name in NAMES if not has(row, name)), "chosen")
        raise DataError(
            f"a row has no '{missing}'; it has {', '.join(row) or 'nothing'}",
            hint="docs/stages/ingest.md lists the spellings of a pair",
        )
    if spelling.better == "messages":
        return _read_continued(row, spelling)
    if spelling.name == "OpenAI preferences":
        return _read_openai(row, spelling)
    used = {spelling.better, spelling.worse}
    column = first_given(row, [name for name in PROMPTS if has(row, name)])
    if column in LISTS and _is_whole(row[spelling.better]):
        column = ""  # The messages beside a pair repeat the better dialogue, as in UltraFeedback.
    addition = _ADDITIONS.get(column, "")
    used |= {column, addition} - {""}
    prompt = None if not column else read_question(row[column], row.get(addition) or None, column, addition)
    return _assemble(row, spelling, prompt, used)


def _read_openai(row: Row, spelling: Answers) -> Dialogue:
    nested = row.get("input")
    if not isinstance(nested, dict) or nested.get("messages") is None:
        raise ChatError("input has no messages", expected='{"messages": [...]} beside preferred_output')
    nested_fields = {
        name: value for name, value in cast(Row, nested).items() if name != "messages" and value is not None
    }
    if twice := [name for name in nested_fields if has(row, name)]:
        raise ChatError(f"'{twice[0]}' stands in the row and in input", expected="the field in only one of the two")
    prompt = read_messages(nested["messages"], "input.messages")
    dialogue = _assemble({**row, **nested_fields}, spelling, prompt, {"input", spelling.better, spelling.worse})
    inner = {name for name in dialogue.descriptive if name in nested_fields}
    left_out = dialogue.left_out | {f"input.{name}" for name in inner if is_given(nested_fields[name])}
    return dialogue._replace(
        descriptive=tuple(name for name in dialogue.descriptive if name not in inner), left_out=left_out
    )


def _read_continued(row: Row, spelling: Answers) -> Dialogue:
    """Read ms-swift's pair: messages with the better answer at the end, and the worse answer as text or messages."""
    read = read_messages(row["messages"], "messages")
    answers = [index for index, message in enumerate(read.messages) if message["role"] == "user"]
    size = answers[-1] + 1 if answers else 0
    prompt, better = read._replace(messages=read.messages[:size]), read.messages[size:]
    return _assemble({**row, "messages": better}, spelling, prompt, {"messages", spelling.worse})


def _assemble(row: Row, spelling: Answers, question: Messages | None, used: set[str]) -> Dialogue:
    columns = {"chosen": spelling.better, "rejected": spelling.worse} | (
        {"edited": "edited"} if has(row, "edited") else {}
    )
    prompt, left_out = (question.messages, {*question.left_out}) if question else (None, set[str]())
    answers: dict[str, list[Row]] = {}
    for name, column in columns.items():
        answers[name] = _read_answer(row[column], column, prompt is not None, left_out)
    if prompt is not None:
        prompt, answers = _apart(prompt, answers)
    if prompt is not None:
        prompt = with_history(prompt, row, used)
    is_question = not used.isdisjoint(PROMPTS[:4])
    others = beside(row, used | OWN, [*(prompt or []), *answers["chosen"]], is_question=is_question)
    _require_words(prompt, answers)
    if prompt is not None:
        fields: Row = {"prompt": with_system(prompt, others.system)} | answers
    else:
        fields = {name: with_system(answer, others.system) for name, answer in answers.items()}
    fields |= {name: row[name] for name in OWN & row.keys() if name not in fields}
    fields |= {"tools": others.tools} if others.tools else {}
    return Dialogue(fields, spelling.name, others.descriptive, frozenset(left_out))


def _is_whole(answer: Any) -> bool:
    """Return whether an answer column holds the whole dialogue rather than the answer alone."""
    if isinstance(answer, str):
        return bool(turns := split_turns(answer)) and turns[0]["role"] == "user"
    first = answer[0] if isinstance(answer, list) and answer else answer
    role = str(first.get("role") or first.get("from")) if isinstance(first, dict) else ""
    return ROLES.get(role.lower()) in _BEFORE


def _read_answer(value: Any, column: str, has_prompt: bool, left_out: set[str]) -> list[Row]:
    if not isinstance(value, str):
        read = read_messages([value] if isinstance(value, dict) else value, column)
        left_out |= read.left_out
        return read.messages
    turns = split_turns(value)
    if turns and (not has_prompt or turns[0]["role"] == "user"):
        return list(turns)
    if not has_prompt:
        raise DataError("an answer in one text without a prompt, and without 'Human:' and 'Assistant:'")
    return [{"role": "assistant", "content": value}]


def _apart(prompt: list[Row], answers: dict[str, list[Row]]) -> tuple[list[Row] | None, dict[str, list[Row]]]:
    """Split the shared prompt from the answers; return no prompt where all answers hold a longer dialogue."""
    rests = {name: _without_prompt(answer, prompt) for name, answer in answers.items()}
    is_whole = all(answer and answer[0]["role"] in _BEFORE for answer in answers.values())
    is_longer = any(message["role"] in _BEFORE for rest in rests.values() for message in rest)
    if not (is_whole and is_longer):
        return prompt, rests
    texts = {_said(message) for answer in answers.values() for message in answer}
    if any(_said(message) not in texts for message in prompt):
        raise ChatError("the answers begin with another dialogue than the prompt", expected="one prompt per row")
    return None, answers


def _without_prompt(answer: list[Row], prompt: list[Row]) -> list[Row]:
    bare = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    size = next((len(begin) for begin in (prompt, bare) if begin and answer[: len(begin)] == begin), 0)
    return answer[size:]


def _require_words(prompt: list[Row] | None, answers: dict[str, list[Row]]) -> None:
    """Raise ChatError for an answer or question without words: a preferred empty text would train silence."""
    for name in ANSWERS:
        for message in answers.get(name, []):
            if message["role"] == "assistant" and not _said(message) and not message.get("tool_calls"):
                raise ChatError(f"an answer without words: {name}")
    messages = [*(prompt or []), *(message for answer in answers.values() for message in answer)]
    if any(message["role"] == "user" and not _said(message) for message in messages):
        raise ChatError("a prompt without words", expected="words in every user message")


def _said(message: Row) -> str:
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else str(content or "")
    return "" if is_blank(text) else text
