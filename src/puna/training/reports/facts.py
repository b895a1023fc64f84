"""Data, model and tokenizer of a run -> facts for run_facts.json, without computing the model."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from puna.data.dataset import Dataset
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.errors import PunaError
from puna.training.objectives.objective import Objective
from puna.training.reports.rows import describe_rows

MAX_ENCODED = 64
DIGIT = re.compile(r"\d")


def gather_facts(objective: Objective, model: Llama, tokenizer: Tokenizer, dataset: Dataset) -> dict[str, Any]:
    """Describe the model, up to 5,000 rows, and 64 encoded conversations."""
    return {
        "num_parameters": model.config.num_parameters,
        "vocab_size": model.config.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "is_every_token": objective.reads_every_token,
        "num_rows": len(dataset),
        "num_conversations": sum(len(rows) for kind, _, rows in dataset.parts if kind == "conversations"),
        **describe_rows(dataset),
        "conversations": describe_conversations(objective, tokenizer, dataset),
    }


def describe_conversations(objective: Objective, tokenizer: Tokenizer, dataset: Dataset) -> dict[str, Any]:
    """Return shares of conversations with system message, with tools, and with a prompt unlike the server's."""
    chat, conversations, lengths, num_different = ChatFormat(tokenizer), [], [0], 0
    for index in range(0, len(dataset), -(-len(dataset) // MAX_ENCODED)):
        try:
            row = dataset[index]
            if not isinstance(row, Conversation):
                continue
            ids = objective.encode(row, random.Random(0))[0].ids
        except PunaError:
            continue  # training itself refuses unreadable rows, with file and line
        conversations.append(row)
        lengths.append(len(ids))
        num_different += not _begins_as_asked(chat, row, ids)
    return {
        "num_looked_at": len(conversations),
        "system": _share(conversations, lambda row: row.messages[0].role == "system"),
        "tools": _share(conversations, lambda row: bool(row.tools or row.environment)),
        "longest": max(lengths),
        "asked_otherwise": num_different / max(1, len(conversations)),
    }


def _share(rows: Sequence[Conversation], has: Callable[[Conversation], bool]) -> float:
    return sum(map(has, rows)) / max(1, len(rows))


def _begins_as_asked(chat: ChatFormat, row: Conversation, ids: Sequence[int]) -> bool:
    """Return whether the training text begins with the prompt that a server builds for the first answer.

    All digits count as equal, because training may replace identifiers.
    """
    roles = [message.role for message in row.messages]
    if "assistant" not in roles:
        return True
    prompt = chat.prompt(replace(row, messages=row.messages[: roles.index("assistant")]))
    texts = [DIGIT.sub("0", chat.tokenizer.decode(part)) for part in (prompt, ids)]
    return texts[1].startswith(texts[0])
