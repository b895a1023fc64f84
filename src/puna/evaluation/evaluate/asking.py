"""A model and questions -> replies, with seconds and token counts. Asking grades no reply.

A checkpoint gets prompts in its training format, from the sampler of the server. An endpoint renders its own prompts.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from puna.evaluation.evaluate.grading import Item
from puna.formats.chat.conversation import Conversation
from puna.inference.completer.completer import Completer, Prompt, Reply, Sampling
from puna.pipeline.run import Run


class ModelReplies(NamedTuple):
    """The replies of a model in the order of the questions, with token counts and seconds of generation.

    Example:
        >>> ModelReplies([Reply(Message("assistant", "At nine."), 3)], 3, 20, seconds=0.5).num_tokens
        3
    """

    replies: list[Reply]
    num_tokens: int
    num_prompt_tokens: int
    seconds: float


def ask(
    model: Completer,
    sampling: Sampling,
    seed: int,
    run: Run,
    name: str,
    items: Sequence[Item],
    *,
    warm_up: bool = True,
) -> ModelReplies:
    """Let a model answer all questions.

    Args:
        model: A checkpoint or an endpoint.
        sampling: Sampling settings of all questions.
        seed: Seed of the evaluation.
        run: Run that shows the progress.
        name: Name of the model for the progress bar.
        items: Questions with their tasks.
        warm_up: Send a short request before the measurement: the first request of a checkpoint pays start-up costs.

    Example:
        >>> asked = ask(completer, Sampling(max_tokens=64), 0, run, "mine", [Item(task, question)])
        >>> len(asked.replies)
        1
    """
    prompts = [_prompt(item, seed) for item in items]
    if warm_up:
        model.complete(prompts[:1], replace(sampling, max_tokens=min(2, sampling.max_tokens)))
    start = time.monotonic()
    with run.progress(len(items), name, unit="questions") as bar:
        replies = model.complete(prompts, sampling, lambda done: bar.advance(done - bar.count))
    seconds = time.monotonic() - start
    num_tokens = sum(reply.num_tokens for reply in replies)
    return ModelReplies(replies, num_tokens, sum(reply.num_prompt_tokens for reply in replies), seconds)


def _prompt(item: Item, seed: int) -> Prompt:
    """Return the prompt of a question, seeded by `seed`, task and question id alone: equal for every checkpoint."""
    identity = f"{seed} {item.task.name} {item.question.id}"
    digest = hashlib.sha256(identity.encode()).digest()
    return Prompt(item.question.conversation, int.from_bytes(digest[:6], "big"))


def join(parts: Sequence[ModelReplies]) -> ModelReplies:
    """Concatenate the replies of consecutive questions; token counts and seconds add up.

    Example:
        >>> join([ModelReplies([], 3, 20, 0.5), ModelReplies([], 4, 30, 0.5)]).num_tokens
        7
    """
    return ModelReplies(
        [reply for part in parts for reply in part.replies],
        sum(part.num_tokens for part in parts),
        sum(part.num_prompt_tokens for part in parts),
        sum(part.seconds for part in parts),
    )


def to_json(answered: ModelReplies) -> dict[str, Any]:
    """Return all replies as a JSON record, for the run's journal.

    Example:
        >>> to_json(ModelReplies([Reply(Message("assistant", "At nine."), 3)], 3, 20, 0.5))["seconds"]
        0.5
    """
    rows = [{**reply._asdict(), "message": reply.message.to_json()} for reply in answered.replies]
    return {**answered._asdict(), "replies": rows}


def from_json(record: dict[str, Any]) -> ModelReplies:
    """Return the replies of a record by `to_json`.

    Example:
        >>> from_json(to_json(ModelReplies([Reply(Message("assistant", "At nine."), 3)], 3, 20, 0.5))).num_tokens
        3
    """
    return ModelReplies(**{**record, "replies": [_reply(row) for row in record["replies"]]})


def _reply(row: dict[str, Any]) -> Reply:
    (message,) = Conversation.from_json({"messages": [row["message"]]}).messages
    return Reply(**{**row, "message": message})
