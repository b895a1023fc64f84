"""The data, model and tokenizer of a run -> facts that its record keeps beside the metrics. No network runs here."""

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
    """Look at the model, at up to 5,000 rows, and at 64 conversations as they are trained on."""
    return {
        "num_parameters": model.config.num_parameters,
        "vocab_size": model.config.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "is_every_token": objective.is_cut,
        "num_rows": len(dataset),
        "num_conversations": sum(len(rows) for kind, _, rows in dataset.parts if kind == "conversations"),
        **describe_rows(dataset),
        "conversations": describe_conversations(objective, tokenizer, dataset),
    }


def describe_conversations(objective: Objective, tokenizer: Tokenizer, dataset: Dataset) -> dict[str, Any]:
    """Return what conversations have (system message, tools), their length, and how many are asked in another form."""
    chat, found, lengths, num_different = ChatFormat(tokenizer), [], [0], 0
    for index in range(0, len(dataset), -(-len(dataset) // MAX_ENCODED)):
        try:
            row = dataset[index]
            if not isinstance(row, Conversation):
                continue
            ids = objective.encode(row, random.Random(0))[0].ids
        except PunaError:
            continue  # what cannot be trained on is refused, with its place, where it is read for that
        found.append(row)
        lengths.append(len(ids))
        num_different += not _begins_as_asked(chat, row, ids)
    return {
        "num_looked_at": len(found),
        "system": _share(found, lambda row: row.messages[0].role == "system"),
        "tools": _share(found, lambda row: bool(row.tools or row.environment)),
        "longest": max(lengths),
        "asked_otherwise": num_different / max(1, len(found)),
    }


def _share(rows: Sequence[Conversation], has: Callable[[Conversation], bool]) -> float:
    return sum(map(has, rows)) / max(1, len(rows))


def _begins_as_asked(chat: ChatFormat, row: Conversation, ids: Sequence[int]) -> bool:
    """Tell whether the training text begins with what a server would ask the model at the first answer.

    Digits count as equal: identifiers may be drawn anew for training.
    """
    roles = [message.role for message in row.messages]
    if "assistant" not in roles:
        return True
    asked = chat.prompt(replace(row, messages=row.messages[: roles.index("assistant")]))
    texts = [DIGIT.sub("0", chat.tokenizer.decode(part)) for part in (asked, ids)]
    return texts[1].startswith(texts[0])
