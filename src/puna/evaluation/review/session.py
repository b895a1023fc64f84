"""Sampled pairs and a label file -> one review: the current pair, and the actions judge, skip and undo.

The review is blind: `state`, the browser's view, holds no checkpoint name, no score and no id.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal, get_args

from puna.evaluation.review.label_file import LabelFile
from puna.evaluation.review.pairs import Answer, Pair
from puna.evaluation.review.sample import SECONDS_PER_PAIR
from puna.evaluation.tasks.labels import AnswerKey, Label
from puna.pipeline.errors import DataError

Verdict = Literal["left", "right", "both", "neither"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
MAX_PAUSE_SECONDS = 300.0  # a longer time on one pair is a pause and does not count for the pace
PACE_WINDOW = 20


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A sampled pair with the reviewer's verdicts, in the order of `pair.answers`.

    Example:
        >>> Reviewed(pair, (True, False)).score("mine")
        0.0
    """

    pair: Pair
    is_right: tuple[bool, ...]

    def score(self, checkpoint: str) -> float:
        """Return 1 if the reviewer would send the checkpoint's answer, else 0."""
        both = zip(self.pair.answers, self.is_right, strict=True)
        return next(float(is_right) for answer, is_right in both if checkpoint in answer.checkpoints)


class Session:
    """One reviewer's pass through a sample.

    A pair counts as judged when `file` holds a label of this reviewer for every answer.

    Example:
        >>> session = Session(sample, LabelFile(Path("labels.jsonl")), reviewer="ada", seed=0)
        >>> session.judge(session.state()["number"], "left")
        >>> session.undo()
    """

    def __init__(
        self,
        sample: Sequence[Pair],
        file: LabelFile,
        reviewer: str,
        seed: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.sample, self.reviewer = list(sample), reviewer
        self.file, self._seed, self._clock = file, seed, clock
        judged = {label.key: label for label in file.labels if label.reviewer == reviewer}
        self._verdicts: dict[int, tuple[bool, ...]] = {}
        for number, pair in enumerate(self.sample):
            labels = [judged.get(pair.key(answer)) for answer in pair.answers]
            if all(labels):
                self._verdicts[number] = tuple(label.right for label in labels if label)
        self.num_resumed = len(self._verdicts)
        self._open = deque(number for number in range(len(self.sample)) if number not in self._verdicts)
        self._history = self._judged_before(judged)
        self.num_skipped = 0
        self._seconds: list[float] = []
        self._shown_at = clock()

    def _judged_before(self, judged: dict[AnswerKey, Label]) -> list[int]:
        """Return the numbers of the judged pairs in the order of the labels in the file, for undo."""
        place = {key: place for place, key in enumerate(judged)}
        return sorted(
            self._verdicts,
            key=lambda number: max(place[self.sample[number].key(each)] for each in self.sample[number].answers),
        )

    @property
    def reviewed(self) -> list[Reviewed]:
        """The judged pairs, in the order of the sample."""
        return [Reviewed(self.sample[number], verdict) for number, verdict in sorted(self._verdicts.items())]

    @property
    def is_done(self) -> bool:
        """Whether every pair is judged or skipped."""
        return not self._open

    @property
    def seconds_left(self) -> float:
        """Seconds for the open pairs, at SECONDS_PER_PAIR, or at the reviewer's median pace after five timed pairs."""
        pace = median(self._seconds[-PACE_WINDOW:]) if len(self._seconds) >= 5 else SECONDS_PER_PAIR
        return len(self._open) * pace

    def state(self) -> dict[str, Any]:
        """Return the content of the page: the current pair, the progress, and whether undo is possible."""
        number = self._open[0] if self._open else None
        return {
            "number": number,
            "place": len(self.sample) - len(self._open) + 1,
            "total": len(self.sample),
            "seconds_left": round(self.seconds_left),
            "can_undo": bool(self._history),
            "num_skipped": self.num_skipped,
            "pair": None if number is None else self._shown(self.sample[number]),
        }

    def _shown(self, pair: Pair) -> dict[str, Any]:
        conversation = pair.conversation
        return {
            "messages": conversation["messages"],
            "tools": conversation.get("tools", []),
            "answers": [answer.message for answer in self.in_order(pair)],
            "reference": reference(pair.expected),
        }

    def in_order(self, pair: Pair) -> tuple[Answer, ...]:
        """Return the answers from left to right, in an order that a hash of seed, task and id fixes for every start."""
        identity = f"{self._seed} {pair.task} {pair.id} left or right"
        is_turned = hashlib.sha256(identity.encode()).digest()[0] % 2 == 1
        return pair.answers[::-1] if is_turned else pair.answers

    def is_shown(self, number: object) -> bool:
        """Tell whether `number` belongs to the current pair."""
        return bool(self._open) and number == self._open[0]

    def judge(self, number: int, verdict: Verdict) -> None:
        """Write the labels of the current pair.

        Raises:
            DataError: A verdict does not fit a single answer, or the labels cannot be written. The pair remains open.
        """
        assert self.is_shown(number)
        pair = self.sample[number]
        left, *right = self.in_order(pair)
        is_right = {id(left): verdict in ("left", "both")} | {id(each): verdict in ("right", "both") for each in right}
        if not right and verdict in ("left", "right"):
            raise DataError(
                f"the verdict '{verdict}' on a single answer", expected="'both' for right or 'neither' for wrong"
            )
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.file.append([self._label(pair, answer, is_right[id(answer)], at) for answer in pair.answers])
        self._verdicts[number] = tuple(is_right[id(answer)] for answer in pair.answers)
        self._seconds += [seconds for seconds in [self._clock() - self._shown_at] if seconds <= MAX_PAUSE_SECONDS]
        self._go_on(number)

    def _label(self, pair: Pair, answer: Answer, is_right: bool, at: str) -> Label:
        others = [each.checkpoints[0] for each in pair.answers if each is not answer]
        names = answer.checkpoints[0], *others, ""
        return Label(pair.task, pair.id, answer.message, is_right, self.reviewer, at, names[0], names[1])

    def skip(self, number: int) -> None:
        """Skip the current pair without a label; the next start shows the pair again."""
        assert self.is_shown(number)
        self.num_skipped += 1
        self._go_on(number)

    def _go_on(self, number: int) -> None:
        self._open.popleft()
        self._history.append(number)
        self._shown_at = self._clock()

    def undo(self) -> None:
        """Show the last judged or skipped pair again, and remove the pair's labels from the file.

        Raises:
            DataError: The file cannot be written; the verdict remains.
        """
        if not self._history:
            return
        number = self._history[-1]
        if number in self._verdicts:
            keys = {self.sample[number].key(answer) for answer in self.sample[number].answers}
            self.file.remove(lambda label: label.reviewer == self.reviewer and label.key in keys)
            del self._verdicts[number]
        else:
            self.num_skipped -= 1
        self._history.pop()
        self._open.appendleft(number)
        self._shown_at = self._clock()


def reference(expected: dict[str, Any]) -> list[dict[str, str]]:
    """Return the expected content of an answer as captions and texts.

    Example:
        >>> reference({"contains": ["24.90"], "distractors": ["4.90"]})
        [{'caption': 'Must contain', 'text': '24.90'}, {'caption': 'Must not contain', 'text': '4.90'}]
    """
    captions = {"contains": "Must contain", "distractors": "Must not contain", "exact": "Exactly", "name": "Call of"}
    shown: list[dict[str, str]] = []
    for name, value in expected.items():
        if name in ("no_call", "language") or not value:
            continue
        texts = value if isinstance(value, list) else [value]
        lines = [each if isinstance(each, str) else json.dumps(each, indent=2, ensure_ascii=False) for each in texts]
        shown.append({"caption": captions.get(name, name.replace("_", " ").capitalize()), "text": "\n".join(lines)})
    return shown
