"""Rows of preference data in TRL's fields -> Preference: a prompt and ranked answers.

Prompt and answers are lists of messages; `puna ingest` converts rows with a dialogue in a single text. Token ids are
the objectives' concern.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

from puna.formats.chat.conversation import Conversation, Message
from puna.pipeline.errors import ChatError

Answer = tuple[Message, ...]
Strength = Literal["significantly better", "better", "slightly better", "marginally better"]
STRENGTHS: tuple[str, ...] = get_args(Strength)
ANSWERS = ("chosen", "rejected", "edited")
SETTINGS = ("tools", "environment", "builtin_tools", "call_format", "today")
FIELDS = ("prompt", *ANSWERS, "strength", *SETTINGS, "id", "metadata")


class Ranked(NamedTuple):
    """An answer, and the number of following answers with a known lower rank. Example: see `Preference.ranking`."""

    answer: Answer
    num_outranked: int


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, a chosen answer and a rejected answer. An answer is a message, or several with tool results between.

    Attributes:
        prompt: Conversation up to the assistant's turn.
        edited: Improved version of the chosen answer; () if absent.
        strength: How much better the chosen answer is, one of `STRENGTHS`; "" if unknown.

    Example:
        >>> messages = {"prompt": [{"role": "user", "content": "Open?"}]}
        >>> messages |= {"chosen": [{"role": "assistant", "content": "Yes, until six."}]}
        >>> messages |= {"rejected": [{"role": "assistant", "content": "Maybe."}]}
        >>> Preference.from_json(messages).chosen[0].content
        'Yes, until six.'
    """

    prompt: Conversation
    chosen: Answer
    rejected: Answer
    edited: Answer = ()
    strength: str = ""
    id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompt.messages or self.prompt.messages[-1].role == "assistant":
            raise ChatError(
                "a prompt without a message to answer", expected="a prompt that ends with a user or tool message"
            )
        for name in ANSWERS:
            answer: Answer = getattr(self, name)
            if answer or name != "edited":
                _require_answer(name, answer)
        chosen, rejected, edited = ([message.rendered for message in getattr(self, name)] for name in ANSWERS)
        if chosen == rejected:
            raise ChatError("chosen and rejected are the same", expected="answers that differ in the prompt format")
        if edited in (chosen, rejected):
            raise ChatError(
                "edited is one of the other answers", expected="an edited answer that differs from both, or none"
            )
        if self.strength and self.strength not in STRENGTHS:
            raise ChatError(f"strength {self.strength!r}", expected=f"one of {', '.join(STRENGTHS)}")

    def ranking(self, strengths: Collection[str] = STRENGTHS) -> list[Ranked]:
        """Return the answers, best first; [] without a pair to compare.

        The pair of chosen and rejected counts if its strength is unknown or among `strengths`.

        Example:
            [ranked.num_outranked for ranked in preference.ranking()]  # [1, 0]; [2, 1, 0] with an edited answer
        """
        is_strong = not self.strength or self.strength in strengths
        if self.edited:
            return [Ranked(self.edited, 2), Ranked(self.chosen, int(is_strong)), Ranked(self.rejected, 0)]
        return [Ranked(self.chosen, 1), Ranked(self.rejected, 0)] if is_strong else []

    def answered(self, answer: Answer) -> Conversation:
        """Return the prompt continued by an answer."""
        return replace(self.prompt, messages=(*self.prompt.messages, *answer))

    def to_json(self) -> dict[str, Any]:
        """Return a row in TRL's fields, without empty fields."""
        prompt = replace(self.prompt, id="", metadata={}).to_json()
        row: dict[str, Any] = {"prompt": prompt.pop("messages")}
        row |= {name: [message.to_json() for message in getattr(self, name)] for name in ANSWERS}
        row |= {"strength": self.strength, **prompt, "id": self.id, "metadata": self.metadata}
        return {name: value for name, value in row.items() if value}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Preference":
        """Read a row with a prompt, or a row without one whose answers start with a common prompt.

        Raises:
            ChatError: A field is malformed; the error names the field.
        """
        fields = {name: value for name, value in row.items() if value is not None}
        for name in fields:
            if name not in FIELDS:
                hint = "Put what else belongs to a preference into `metadata`, or let `puna ingest` do it"
                raise ChatError(f"unknown field {name}", expected=f"only {', '.join(FIELDS)}", hint=hint)
        answers = {name: _read_messages(fields, name) for name in ANSWERS}
        prompt = {name: fields[name] for name in SETTINGS if name in fields}
        if "prompt" in fields:
            prompt["messages"] = fields["prompt"]
        else:
            answers, prompt["messages"] = _split(answers, fields["chosen"])
        try:
            conversation = Conversation.from_json(prompt)
        except ChatError as error:
            raise ChatError(f"prompt: {error.given}", expected=error.expected, hint=error.hint) from None
        types = {"strength": str, "id": str, "metadata": dict}
        for name, kind in types.items():
            if name in fields and not isinstance(fields[name], kind):
                raise ChatError(f"{name} is {type(fields[name]).__name__}", expected=kind.__name__)
        return cls(conversation, **answers, **{name: fields[name] for name in types if name in fields})


def _require_answer(name: str, answer: Answer) -> None:
    if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
        hint = f"The first one is of the {answer[0].role}, the last one of the {answer[-1].role}" if answer else ""
        expected = "messages that begin and end with the assistant"
        raise ChatError(f"{name} of {len(answer)} messages", expected=expected, hint=hint)
    for index, message in enumerate(answer):
        if message.role not in ("assistant", "tool"):
            raise ChatError(
                f"{name}[{index}] is a {message.role} message", expected="messages of the assistant and of tools only"
            )
        if not message.weight:
            raise ChatError(f"{name}[{index}] has weight 0", expected="answer messages of weight 1")


def _read_messages(row: dict[str, Any], name: str) -> Answer:
    if name not in row:
        if name == "edited":
            return ()
        raise ChatError(f"{name} is missing", expected="a list of messages")
    if not isinstance(row[name], list):
        hint = "`puna ingest --format preferences` makes messages of texts" if isinstance(row[name], str) else ""
        raise ChatError(f"{name} is {type(row[name]).__name__}", expected="a list of messages", hint=hint)
    try:
        return Conversation.from_json({"messages": row[name]}).messages
    except ChatError as error:
        raise ChatError(f"{name}: {error.given}", expected=error.expected, hint=error.hint) from None


def _split(answers: dict[str, Answer], raw: Sequence[Any]) -> tuple[dict[str, Answer], list[Any]]:
    """Split the common start of all answers off as the prompt, up to the last message of a user or a tool."""
    whole = [answer for name, answer in answers.items() if answer or name != "edited"]
    size = 0
    while all(len(answer) > size and answer[size] == whole[0][size] for answer in whole):
        size += 1
    while size and whole[0][size - 1].role == "assistant":
        size -= 1
    if not size:
        raise ChatError(
            "chosen and rejected begin with different messages", expected="a common prompt, or a field `prompt`"
        )
    return {name: answer[size:] for name, answer in answers.items()}, list(raw[:size])
