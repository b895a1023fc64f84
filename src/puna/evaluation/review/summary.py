"""Judged pairs -> counts and a difference with an interval: in words with names, and blind for the page."""

import shlex
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from puna.evaluation.review.pairs import Pair
from puna.evaluation.review.sample import sample_difference, sample_share
from puna.evaluation.review.session import Reviewed, Session
from puna.evaluation.tasks.intervals import Interval
from puna.pipeline.artifacts.artifact import Manifest

# Settings that the next evaluation repeats: choice of checkpoints and questions, sampling and judging.
KEPT_SETTINGS = (
    "checkpoints", "tasks", "max_questions", "only_judged", "seed", "temperature", "top_p", "max_tokens", "precision",
    "kv_cache", "judge", "reward",
)  # fmt: skip


def describe(session: Session, pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """Return the lines for the terminal: judged pairs, comparison of the checkpoints, agreement with the rules.

    Args:
        session: The review.
        pairs: All pairs of the evaluation, also the pairs outside the session's sample.
        names: Names of one or two checkpoints; the difference is the second's score minus the first's.
    """
    reviewed, num_sampled = session.reviewed, len(session.sample)
    skipped = f", {session.num_skipped} skipped" if session.num_skipped else ""
    lines = [f"{len(reviewed)} of {num_sampled} pairs judged by {session.reviewer}{skipped}"]
    if not reviewed:
        return lines
    lines.append(_counts(reviewed, names))
    parts = [("answers that no rule judged", False), ("answers that a rule judged", True)]
    total = {is_rule: sum(pair.is_judged_by_rule == is_rule for pair in pairs) for _, is_rule in parts}
    if session.is_done or 0 in total.values():
        lines.append(f"all {len(pairs):,} questions: {_compared(reviewed, len(pairs), names)}")
    else:
        lines.append("not finished: the figures are of each kind by itself")
    if 0 not in total.values():
        for title, is_rule in parts:
            part = [each for each in reviewed if each.pair.is_judged_by_rule == is_rule]
            comparison = _compared(part, total[is_rule], names) if part else "none judged yet"
            lines.append(f"{title} ({len(part):,} of {total[is_rule]:,}): {comparison}")
    return [*lines, *_agreement(reviewed), *_open_answers(reviewed, pairs)]


def _open_answers(reviewed: Sequence[Reviewed], pairs: Sequence[Pair]) -> list[str]:
    """Report the questions that neither a rule nor this review judged; the gate passes no model with open questions."""
    seen = {(each.pair.task, each.pair.id) for each in reviewed}
    num_open = sum(not pair.is_judged_by_rule and (pair.task, pair.id) not in seen for pair in pairs)
    if not num_open:
        return []
    return [
        f"{num_open:,} questions are judged by nobody yet, and the gate lets no model pass with them: go on with "
        "--margin 0, or leave them out of the evaluation with --only-judged"
    ]


def _counts(reviewed: Sequence[Reviewed], names: Sequence[str]) -> str:
    def count(*scores: float) -> int:
        return sum(tuple(each.score(name) for name in names) == scores for each in reviewed)

    if len(names) == 1:
        return f"right: {count(1)}, wrong: {count(0)}"
    first, second = names
    only = f"only {first}: {count(1, 0)}, only {second}: {count(0, 1)}"
    return f"right: both {count(1, 1)}, {only}, neither {count(0, 0)}"


def _compared(reviewed: Sequence[Reviewed], total: int, names: Sequence[str]) -> str:
    """Return each checkpoint's share of right answers and the difference, with intervals for all `total` pairs."""
    scores = {name: [each.score(name) for each in reviewed] for name in names}
    shares = {name: sample_share(scores[name], total) for name in names}
    listed = ", ".join(f"{name} {_percent(share)}" for name, share in shares.items())
    if len(names) == 1:
        return f"right in {listed}"
    difference = sample_difference(scores[names[1]], scores[names[0]], total)
    return f"right in {listed}; {names[1]} is {_difference(difference)} against {names[0]}"


def _percent(share: Interval) -> str:
    return f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})"


def _difference(interval: Interval) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"


def _agreement(reviewed: Sequence[Reviewed]) -> list[str]:
    """Compare the reviewer's verdicts with the rules: a rule that often disagrees checks for the wrong content."""
    verdicts = [
        (answer.rule_score >= 1, is_right)
        for each in reviewed
        for answer, is_right in zip(each.pair.answers, each.is_right, strict=True)
        if answer.rule_score is not None
    ]
    if not verdicts:
        return []
    num_equal = sum(rule == person for rule, person in verdicts)
    num_passed = sum(rule and not person for rule, person in verdicts)
    return [
        f"the rules agree with {num_equal} of {len(verdicts)} of your verdicts; "
        f"{num_passed} answers that you call wrong passed a rule"
    ]


def describe_blind(session: Session, names: Sequence[str], total: int) -> dict[str, Any]:
    """Return the page's summary: counts, and the distance between two checkpoints without the name of the leader."""
    reviewed = session.reviewed
    rights = [sum(each.is_right) / len(each.is_right) for each in reviewed]
    summary: dict[str, Any] = {
        "judged": len(reviewed),
        "skipped": session.num_skipped,
        "all_right": rights.count(1.0),
        "none_right": rights.count(0.0),
        "one_right": rights.count(0.5),
    }
    if len(names) == 2 and session.is_done and reviewed:
        scores = [[each.score(name) for each in reviewed] for name in names]
        mean, low, high = sample_difference(scores[0], scores[1], total)
        bounds = (mean, low, high) if mean >= 0 else (-mean, -high, -low)
        summary["difference"] = [round(100 * value, 1) for value in bounds]
    return summary


def next_command(evaluation: Path, manifest: Manifest, labels: Path) -> str:
    """Return the command that evaluates the same answers again with the labels, without new generation.

    Example:
        >>> next_command(Path("old"), manifest, Path("labels.jsonl"))
        'puna evaluate --tasks shop --answers old --labels labels.jsonl --out old-judged'
    """
    settings = [_flags(f"--{name.replace('_', '-')}", manifest.config.get(name)) for name in KEPT_SETTINGS]
    files = dict.fromkeys([*manifest.config.get("labels", []), str(labels)])
    added = ["--answers", str(evaluation), *_flags("--labels", list(files)), "--out", f"{evaluation}-judged"]
    return shlex.join(["puna", "evaluate", *chain.from_iterable(settings), *added])


def _flags(flag: str, value: Any) -> list[str]:
    """Return a setting as command-line flags; an unset, empty or false setting yields no flag."""
    if isinstance(value, dict):
        return [word for name, part in value.items() for word in _flags(f"{flag}.{name}", part)]
    if isinstance(value, list):
        return [word for part in value for word in _flags(flag, part)]
    if isinstance(value, bool):
        return [flag] if value else []
    return [] if value is None or value == "" else [flag, str(value)]
