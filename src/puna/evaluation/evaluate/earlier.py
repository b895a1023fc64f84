"""An earlier evaluation -> reusable replies of the same checkpoint, to grade again without asking again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.data.shards import read_rows
from puna.evaluation.evaluate.asking import Asked
from puna.evaluation.evaluate.grading import Item
from puna.formats.chat.conversation import Conversation
from puna.inference.completer.completer import Reply
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError, ChatError, ConfigError
from puna.pipeline.storage.records import read_record

# Settings that change an answer. With a temperature above 0, the seed does too.
SETTINGS = ("temperature", "top_p", "max_tokens", "precision", "kv_cache")
WHOLE = ("stop", "length")


@dataclass(frozen=True)
class _Speed:
    """The part of speed.json that a new evaluation takes over."""

    generated_tokens: int
    prompt_tokens: int
    seconds: float


def read_earlier(path: Path, settings: dict[str, Any], checkpoint: Path, items: Sequence[Item]) -> list[Reply | None]:
    """Return one entry per item: the earlier reply of a checkpoint with the same content hash, or None.

    Task, question id and conversation must match. A reply that failed also gives None: the question is asked again.

    Raises:
        ConfigError: The earlier evaluation used different settings, or the artifact is no evaluation.
    """
    manifest = artifact.read_manifest(path)
    if manifest.kind != "scores":
        raise ConfigError(f"answers = {path} is an artifact of kind '{manifest.kind}'", expected="one of 'evaluate'")
    names = SETTINGS if settings["temperature"] == 0 else (*SETTINGS, "seed")
    for name in names:
        if manifest.config.get(name) != settings[name]:
            given = f"answers = {path} with {name} = {manifest.config.get(name)}, and {name} = {settings[name]} here"
            raise ConfigError(given, expected="the same settings of asking", hint=f"Set {name} alike, or ask anew")
    name = _name_of(manifest.inputs, artifact.content_hash(checkpoint))
    file = path / f"conversations-{name}.jsonl"
    try:
        rows = read_rows(file) if name else ()
        known = {_key(row["task"], row["id"], row["conversation"]): row for row in rows}
        found = [known.get(_key(task.name, question.id, question.conversation.to_json())) for task, question in items]
        return [_reply(row) if row and row["finish_reason"] in WHOLE else None for row in found]
    except (KeyError, TypeError, ChatError) as error:
        raise ArtifactError(f"{file} ({error})", expected="answers as 'evaluate' writes them") from None


def read_measured(path: Path, checkpoint: Path, replies: list[Reply]) -> Asked:
    """Return earlier replies with the token counts and seconds that the earlier evaluation measured.

    Raises:
        ArtifactError: speed.json is unreadable, or holds no speed of the checkpoint.
    """
    name = _name_of(artifact.read_manifest(path).inputs, artifact.content_hash(checkpoint))
    expected = "speeds as 'evaluate' writes them"
    try:
        speed = read_record(path / "speed.json", dict[str, _Speed], expected=expected)[name]
    except (FileNotFoundError, KeyError) as error:
        raise ArtifactError(f"{path / 'speed.json'} ({error})", expected=expected) from None
    return Asked(replies, speed.generated_tokens, speed.prompt_tokens, speed.seconds)


def _name_of(inputs: dict[str, dict[str, Any]], content: str) -> str:
    """Return the name of the evaluated checkpoint with the content hash `content`, or "" without a match."""
    prefix = "checkpoints."
    asked = (
        role.removeprefix(prefix)
        for role, entry in inputs.items()
        if role.startswith(prefix) and entry["hash"] == content
    )
    return next(asked, "")


def _key(task: str, id: str, conversation: dict[str, Any]) -> tuple[str, str, str]:
    return task, id, json.dumps(conversation, sort_keys=True, ensure_ascii=False)


def _reply(row: dict[str, Any]) -> Reply:
    (message,) = Conversation.from_json({"messages": [row["answer"]]}).messages
    return Reply(message, row["num_tokens"], finish_reason=row["finish_reason"])
