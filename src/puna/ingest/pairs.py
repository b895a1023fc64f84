"""Rows of pairs, as other programs spell them (JSONL, plain or gzip, or Parquet) -> preferences.

Takes answers as messages or as text, behind a prompt of their own or each behind the same dialogue; a dialogue in one
text is cut at "Human:" and "Assistant:", as Anthropic's hh-rlhf has it. Turns no scores into strengths.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.data.preference import ANSWERS, FIELDS, Preference
from puna.errors import ChatError, DataError
from puna.ingest.records import Read, first_of, metadata, read_each

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]*")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_pairs(path: Path, source: str) -> Iterator[Read]:
    """Yield each pair of a file; fields that a preference does not have become its metadata."""
    return read_each(path, source, _read_row)


def _read_row(row: dict[str, Any], where: str, source: str) -> Preference:
    known = {name: row[name] for name in FIELDS if row.get(name) is not None}
    for name in ANSWERS[:2]:
        if name not in known:
            raise DataError(f"a row has no '{name}'; it has {', '.join(row) or 'nothing'}")
    known |= {"id": first_of(row, "id", "prompt_id") or where, "metadata": metadata(row, {*FIELDS, "prompt_id"})}
    known |= {name: _messages(known[name], "prompt" in known) for name in ANSWERS if name in known}
    prompt = known.get("prompt")
    if isinstance(prompt, str):
        if any(len(known[name]) > 1 for name in ANSWERS if name in known):
            del known["prompt"]  # The dialogues that hold the answers begin with it.
        else:
            known["prompt"] = _dialogue(prompt) or [{"role": "user", "content": prompt}]
    preference = Preference.from_json(known)
    for name in ANSWERS:
        if any(not message.content.strip() and not message.tool_calls for message in getattr(preference, name)):
            raise ChatError(f"an answer without words: {name}")
    return preference


def _messages(answer: Any, has_prompt: bool) -> Any:
    if not isinstance(answer, str):
        return answer
    dialogue = [] if has_prompt else _dialogue(answer)
    if not dialogue and not has_prompt:
        raise DataError("an answer in one text without a prompt, and without 'Human:' and 'Assistant:'")
    return dialogue or [{"role": "assistant", "content": answer}]


def _dialogue(text: str) -> list[dict[str, str]]:
    """Return the messages of a dialogue in one text; none if it is no dialogue."""
    before, *parts = _TURN.split(text)
    if before.strip():
        return []
    return [{"role": _ROLES[role], "content": said.strip()} for role, said in zip(parts[::2], parts[1::2], strict=True)]
