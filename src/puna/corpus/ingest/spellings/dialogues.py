"""A row with a dialogue in a known layout -> a conversation in OpenAI's layout, and the name of the layout.

Column names decide the layout. Other columns of the row must not contradict the dialogue.
"""

from typing import Any, NamedTuple

from puna.corpus.ingest.spellings.columns import Row, beside, first_given, has, is_given, with_history, with_system
from puna.corpus.ingest.spellings.messages import Messages, read_messages
from puna.corpus.ingest.spellings.transcripts import as_prompt
from puna.formats.chat.conversation import is_blank
from puna.pipeline.errors import ChatError, DataError

# Columns with a list of messages, in order of precedence.
LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "dialogs")
# Puna's own fields of a conversation beside the messages and the tools.
OWN = {"environment", "builtin_tools", "call_format", "today", "id", "metadata"}


class Instruction(NamedTuple):
    """A layout with question and answer in two columns.

    Example:
        >>> Instruction("Alpaca", "instruction", "output", addition="input").name
        'Alpaca'
    """

    name: str
    question: str
    answer: str
    addition: str = ""


INSTRUCTIONS = (
    Instruction("Alpaca", "instruction", "output", addition="input"),
    Instruction("Dolly", "instruction", "response", addition="context"),
    Instruction("question and answer", "question", "answer"),
    *(
        Instruction(f"{question} and {answer}", question, answer)
        for question in ("prompt", "query", "question", "instruction", "input")
        for answer in ("completion", "response", "output")
    ),
)


class Answers(NamedTuple):
    """A layout of a preference pair: name, and the columns of the better and the worse answer.

    Example:
        >>> Answers("TRL", "chosen", "rejected").better
        'chosen'
    """

    name: str
    better: str
    worse: str


PAIRS = (
    Answers("chosen and rejected", "chosen", "rejected"),
    Answers("OpenAI preferences", "preferred_output", "non_preferred_output"),
    Answers("chosen and rejected responses", "chosen_response", "rejected_response"),
    Answers("ms-swift", "messages", "rejected_response"),
    Answers("ms-swift", "messages", "rejected_messages"),
)


class Dialogue(NamedTuple):
    """Fields for Conversation.from_json, the name of the layout, and the columns outside the dialogue.

    `descriptive` columns become metadata; `left_out` lists message fields without a place in the prompt format.

    Example:
        >>> read_dialogue({"question": "Open?", "answer": "Yes.", "rank": 3}).descriptive
        ('rank',)
    """

    fields: Row
    spelling: str
    descriptive: tuple[str, ...]
    left_out: frozenset[str] = frozenset()


def is_dialogue(row: Row) -> bool:
    """Tell whether a row holds a dialogue in a known layout, or a preference pair.

    Example:
        >>> is_dialogue({"text": "A page."})
        False
    """
    return (
        _pair_of(row) is not None
        or any(_holds_list(row, name) for name in LISTS)
        or any(_is_spelled(row, layout) for layout in INSTRUCTIONS)
    )


def read_dialogue(row: Row) -> Dialogue:
    """Read a row with a dialogue.

    Raises:
        DataError: The row holds a preference pair.
        ChatError: A field is unreadable or contradicts the dialogue.

    Example:
        >>> read_dialogue({"question": "Open?", "answer": "Yes."}).fields["messages"][1]
        {'role': 'assistant', 'content': 'Yes.'}
    """
    pair = _pair_of(row)
    if pair is not None:
        raise DataError(
            f"a pair of answers ({pair.better}, {pair.worse})", expected="one answer, or format 'preferences'"
        )
    column = first_given(row, [name for name in LISTS if _holds_list(row, name)])
    if column:
        read, used = read_messages(row[column], column), {column}
    else:
        read, used = _read_instruction(row)
    read = read._replace(messages=with_history(read.messages, row, used))
    others = beside(row, used | OWN, read.messages, is_question=not column)
    messages = with_system(read.messages, others.system)
    _require_words(messages)
    fields = {name: row[name] for name in OWN & row.keys()} | {"messages": messages}
    fields |= {"tools": others.tools} if others.tools else {}
    return Dialogue(fields, read.spelling, others.descriptive, read.left_out)


def _pair_of(row: Row) -> Answers | None:
    """Return the layout of a preference pair; None for other rows and empty columns."""
    # The column of the worse answer first: most rows lack the column, which ends the check early.
    return next((pair for pair in PAIRS if is_given(row.get(pair.worse)) and is_given(row.get(pair.better))), None)


def _holds_list(row: Row, name: str) -> bool:
    """Tell whether a column holds messages; a column `conversation` may also hold an id."""
    value = row.get(name)
    is_list = isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
    return is_list or (name == "messages" and value is not None)


def _is_spelled(row: Row, spelling: Instruction) -> bool:
    return has(row, spelling.question) and has(row, spelling.answer)


def _read_instruction(row: Row) -> tuple[Messages, set[str]]:
    spelling = next(layout for layout in INSTRUCTIONS if _is_spelled(row, layout))
    used = {spelling.question, spelling.answer} | ({spelling.addition} - {""})
    prompt = read_question(row[spelling.question], row.get(spelling.addition), spelling.question, spelling.addition)
    answer, left_out = row[spelling.answer], prompt.left_out
    if isinstance(answer, str):
        answers = [{"role": "assistant", "content": answer}]
    else:
        if not isinstance(answer, dict | list):
            raise ChatError(f"{spelling.answer} is {type(answer).__name__}", expected="a text or messages")
        read = read_messages([answer] if isinstance(answer, dict) else answer, spelling.answer)
        answers, left_out = read.messages, left_out | read.left_out
    if answers and answers[0]["role"] != "assistant":
        raise ChatError(
            f"{spelling.answer} begins with the {answers[0]['role']}", expected="an assistant message first"
        )
    if prompt.messages and prompt.messages[-1]["role"] == "assistant":
        raise ChatError(f"{spelling.question} ends with the assistant", expected="a user or tool message last")
    # TRL learns from the completion alone: answers in the prompt are context.
    context = [message | {"weight": 0} if message["role"] == "assistant" else message for message in prompt.messages]
    return Messages([*context, *answers], spelling.name, left_out), used


def read_question(question: Any, addition: Any, column: str, addition_column: str) -> Messages:
    """Read the column of a question: a text, joined with the text of a second column, or messages.

    Raises:
        ChatError: The second column is no text, or stands beside messages, where the text would be lost.

    Example:
        >>> read_question("Is it late?", "Ferry A", "instruction", "input").messages
        [{'role': 'user', 'content': 'Is it late?\\nFerry A'}]
    """
    if isinstance(question, str):
        if addition is not None and not isinstance(addition, str):
            raise ChatError(f"{addition_column} is {type(addition).__name__}", expected="a string")
        # LLaMA-Factory and ms-swift join the instruction and its input by a line break, too.
        text = "\n".join(part for part in (question, addition) if part and part.strip())
        return Messages(list(as_prompt(text)), "text", frozenset())
    if addition:
        raise ChatError(f"{column} is a list beside {addition_column}", expected="a string")
    return read_messages([question] if isinstance(question, dict) else question, column)


def _require_words(messages: list[Row]) -> None:
    """Raise ChatError for a user message without words."""
    for index, message in enumerate(messages):
        content = message.get("content")
        if message["role"] == "user" and (content is None or (isinstance(content, str) and is_blank(content))):
            raise ChatError(f"messages[{index}] is a user message without words", expected="words")
