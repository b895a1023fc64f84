"""The loss flags of a message in other trainers' files -> OpenAI's weight, 0 or 1.

| flag | written by |
|---|---|
| `weight` 0 / 1 | OpenAI fine-tuning, axolotl |
| `train`, `training` true / false | axolotl |
| `loss` true / false | ms-swift |
| `masked` true / false | torchtune: a masked message is not learned from |
"""

from typing import Any

from puna.pipeline.errors import ChatError

FLAGS = ("weight", "train", "training", "loss")
MASK = "masked"


def pop_weight(message: dict[str, Any], role: str, place: str) -> int:
    """Remove the loss flags from a message and return the weight: 1 unless a flag says 0.

    Raises:
        ChatError: A flag is neither true nor false, two flags differ, or a user message is to be learned from.

    Example:
        >>> pop_weight({"content": "Dunno.", "train": False}, "assistant", "messages[1]")
        0
    """
    flags = {name: _weight(message.pop(name), f"{place}.{name}") for name in (*FLAGS, MASK) if name in message}
    if MASK in flags:
        flags[MASK] = 1 - flags[MASK]
    if len(set(flags.values())) > 1:
        raise ChatError(f"{place}: {' and '.join(flags)} differ", expected="one loss flag, or several equal flags")
    is_answer = role in ("assistant", "call")
    if not is_answer and 1 in flags.values():
        name = next(iter(flags))
        raise ChatError(
            f"{place}.{name} asks to learn from a {role} message",
            expected="a positive loss flag in assistant messages only",
        )
    return next(iter(flags.values()), 1) if is_answer else 1


def _weight(flag: Any, place: str) -> int:
    if not isinstance(flag, int | float) or flag not in (0, 1):
        raise ChatError(f"{place} is {flag!r}", expected="0, 1, true or false, since a message counts as a whole")
    return int(flag)
