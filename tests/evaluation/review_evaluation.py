"""Evaluations as `puna evaluate` writes them, with answers that a test chooses, and reviews of them."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from puna.data.shards import write_jsonl
from puna.evaluation.review.label_file import LabelFile
from puna.evaluation.review.pairs import Pair
from puna.evaluation.review.server import ReviewServer
from puna.evaluation.review.session import Session
from puna.evaluation.review.summary import describe_blind
from puna.pipeline.artifacts import artifact

FIRST, SECOND = "zq-baseline", "zq-candidate"  # names that no text of a page holds by chance
NAMES = (FIRST, SECOND)


def say(text: str, *, calls: Sequence[tuple[str, dict[str, Any]]] = ()) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    functions = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return message | ({"tool_calls": functions} if calls else {})


def row(number: int, answer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a row of conversations-NAME.jsonl that no rule judged for content."""
    messages = [{"role": "user", "content": f"When do you open on day {number}?"}]
    return {
        "task": "shop",
        "id": f"q{number}",
        "group": f"world {number // 4}",
        "conversation": {"messages": messages},
        "expected": {"no_call": True, "reference": f"We open at {number}."},
        "grade": "no_call",
        "answer": answer,
        "score": 1.0,
        "parts": {},
        "reason": "in words",
        "finish_reason": "stop",
        "num_tokens": 4,
        **changes,
    }


def write_evaluation(path: Path, answers: dict[str, list[dict[str, Any]]]) -> Path:
    """Write an artifact of kind 'scores' with rows by checkpoint."""
    with artifact.writing(path) as partial:
        for name, rows in answers.items():
            write_jsonl(partial / f"conversations-{name}.jsonl", rows)
        overall = {name: {"overall": {"score": 0.5, "n": len(rows)}} for name, rows in answers.items()}
        (partial / "scores.json").write_text(json.dumps({"checkpoints": overall, "differences": []}))
        speed = {"weight_bytes": 1, "generated_tokens_per_s": 1.0}
        (partial / "speed.json").write_text(json.dumps(dict.fromkeys(answers, speed)))
        config = {"checkpoints": {name: f"models/{name}" for name in answers}, "tasks": ["data/shop"], "seed": 3}
        hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in answers}
        inputs = {f"checkpoints.{name}": {"path": name, "kind": "raw", "hash": hashes[name]} for name in answers}
        config |= {"temperature": 0.0, "max_questions": None}
        artifact.commit(partial, path, artifact.Manifest("scores", "evaluate", "key", config, inputs, {}))
    return path


def plain_evaluation(path: Path, num_questions: int = 12) -> Path:
    """Write an evaluation whose every fourth pair has equal answers and whose last third a rule judged."""
    answers: dict[str, list[dict[str, Any]]] = {FIRST: [], SECOND: []}
    for number in range(num_questions):
        judged = {"judged": number >= num_questions * 2 // 3, "judged_by": "rule"}
        right, wrong = f"At {number}.", f"Perhaps at {number + 1}."
        for name, text in zip(answers, (right, right if number % 4 == 0 else wrong), strict=True):
            answers[name].append(row(number, say(text), score=float(text == right), **judged))
    return write_evaluation(path, answers)


def open_session(pairs: list[Pair], path: Path, *, reviewer: str = "ada", seed: int = 0) -> Session:
    return Session(pairs, LabelFile(path), reviewer, seed)


@contextmanager
def serving(session: Session, pairs: list[Pair]) -> Iterator[ReviewServer]:
    server = ReviewServer(session, partial(describe_blind, session, NAMES, len(pairs)), port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.end()
