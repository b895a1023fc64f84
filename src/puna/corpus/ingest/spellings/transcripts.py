"""A transcript as a string, as in Anthropic's hh-rlhf dataset -> messages; plain text -> a user message."""

import re

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]*")
_ROLES = {"Human": "user", "Assistant": "assistant"}

Message = dict[str, str]


def split_turns(text: str) -> list[Message]:
    """Return the messages of a transcript; [] for plain text.

    Example:
        >>> split_turns("Human: Open?\\n\\nAssistant: Yes.")[1]
        {'role': 'assistant', 'content': 'Yes.'}
    """
    before, *parts = _TURN.split(text.replace("\r\n", "\n"))
    if before.strip():
        return []
    return [{"role": _ROLES[role], "content": turn.strip()} for role, turn in zip(parts[::2], parts[1::2], strict=True)]


def as_prompt(text: str) -> list[Message]:
    """Return the messages of a prompt, without the empty assistant turn at the end of a transcript.

    Example:
        >>> as_prompt("Human: Open?\\n\\nAssistant:")
        [{'role': 'user', 'content': 'Open?'}]
    """
    turns = split_turns(text)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns or [{"role": "user", "content": text}]
