"""Preferences small enough for a test: customers ask for an order, the better answer names it."""

import json
from pathlib import Path
from typing import Any

STRENGTHS = ("significantly better", "better", "slightly better")


def row(n: int) -> dict[str, Any]:
    """Every third row is only slightly better, every fourth has an edited answer."""
    order = str(40_000 + 37 * n)
    said = {"chosen": f"Your order {order} is on its way.", "rejected": "We open at nine and close at six."}
    if n % 4 == 0:
        said["edited"] = f"The parcel of order {order} is on its way."
    answers = {name: [{"role": "assistant", "content": text}] for name, text in said.items()}
    prompt = [{"role": "user", "content": f"Where is my order {order}?"}]
    return {"prompt": prompt, **answers, "strength": STRENGTHS[n % 3], "id": f"order {n}"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "preferences.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path
