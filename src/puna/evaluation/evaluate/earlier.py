"""An earlier evaluation -> reusable replies of the same checkpoint, to grade again without asking again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.evaluation.evaluate.asking import ModelReplies
from puna.evaluation.evaluate.grading import Item
from puna.evaluation.scores import conversations_name, read_evaluation
from puna.formats.chat.conversation import Conversation
from puna.inference.completer.completer import Reply
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError, ChatError, ConfigError

# Settings that change an answer. With a temperature above 0, the seed does too.
SETTINGS = ("temperature", "top_p", "max_tokens", "precision", "kv_cache")
WHOLE = ("stop", "length")


def read_earlier(path: Path, settings: dict[str, Any], checkpoint: Path, items: Sequence[Item]) -> list[Reply | None]:
    """Return an entry per item: the earlier reply of a checkpoint with the same content hash, or None.

    Task, question id and conversation must match. A failed reply gives None, and the question is asked again.

    Raises:
        ConfigError: The earlier evaluation used different settings, or the artifact is no evaluation.
    """
    evaluation = read_evaluation(path, "answers")
    names = SETTINGS if settings["temperature"] == 0 else (*SETTINGS, "seed")
    for name in names:
        if evaluation.settings.get(name) != settings[name]:
            problem = (
                f"answers = {path} with {name} = {evaluation.settings.get(name)}, and {name} = {settings[name]} here"
            )
            raise ConfigError(
                problem, expected="equal generation settings", hint=f"Use the same {name}, or leave out answers"
            )
    name = evaluation.name_of(artifact.content_hash(checkpoint))
    if name is None:
        return [None] * len(items)
    try:
        rows = evaluation.answers_of(name).rows
        rows_by_key = {_key(row["task"], row["id"], row["conversation"]): row for row in rows}
        earlier = [
            rows_by_key.get(_key(task.name, question.id, question.conversation.to_json())) for task, question in items
        ]
        return [_reply(row) if row and row["finish_reason"] in WHOLE else None for row in earlier]
    except (KeyError, TypeError, ChatError) as error:
        problem = f"{path / conversations_name(name)} ({error})"
        raise ArtifactError(problem, expected="answers as 'evaluate' writes them") from None


def read_measured(path: Path, checkpoint: Path, replies: list[Reply]) -> ModelReplies:
    """Return earlier replies with the token counts and seconds of the earlier evaluation.

    Raises:
        ArtifactError: speed.json is unreadable, or holds no speed of the checkpoint.
    """
    evaluation = read_evaluation(path, "answers")
    speed = evaluation.speed.get(evaluation.name_of(artifact.content_hash(checkpoint)) or "")
    if speed is None:
        raise ArtifactError(f"{path} without a speed of {checkpoint}", expected="speeds as 'evaluate' writes them")
    return ModelReplies(replies, speed.generated_tokens, speed.prompt_tokens, speed.seconds)


def _key(task: str, id: str, conversation: dict[str, Any]) -> tuple[str, str, str]:
    return task, id, json.dumps(conversation, sort_keys=True, ensure_ascii=False)


def _reply(row: dict[str, Any]) -> Reply:
    (message,) = Conversation.from_json({"messages": [row["answer"]]}).messages
    return Reply(message, row["num_tokens"], finish_reason=row["finish_reason"])
