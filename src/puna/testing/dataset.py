"""A dataset small enough to train on in a test: conversations with a tool call, and documents."""

import json
from pathlib import Path
from typing import Any


def conversation(number: int) -> dict[str, Any]:
    """Return a conversation about an order, with a tool call.

    Args:
        number: Seed of the identifiers of order and parcel; two numbers give two conversations.

    Example:
        >>> [message["role"] for message in conversation(1)["messages"]]
        ['user', 'assistant', 'tool', 'assistant']
    """
    order, parcel = str(40_000 + 37 * number), str(60_000 + number)
    call = {"type": "function", "function": {"name": "find_order", "arguments": {"order": order}}}
    return {
        "id": f"order {number}",
        "environment": "ipython",
        "messages": [
            {"role": "user", "content": f"Where is my order {order}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": json.dumps({"order": order, "parcel": parcel})},
            {"role": "assistant", "content": f"Your order {order} is parcel {parcel}."},
        ],
    }


def document(number: int) -> dict[str, str]:
    """Return a document of one to three sentences about the hours of a store."""
    sentence = f"Store {number} opens at {number + 5} and closes at {number + 12}. "
    return {"text": sentence * (number % 3 + 1), "id": f"page {number}"}


def write_dataset(directory: Path, *, num_documents: int = 6, num_conversations: int = 12) -> Path:
    """Write `documents.jsonl` and `conversations.jsonl` into a directory, ready for any training stage."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("documents", [document(number) for number in range(num_documents)]),
        ("conversations", [conversation(number) for number in range(num_conversations)]),
    ):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory
