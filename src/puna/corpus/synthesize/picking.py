"""Judged answers to one question -> the conversations to learn from, a pair to prefer by, and the rest with reasons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from puna.corpus.synthesize.asking import Reply
from puna.data.preference import Preference
from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Conversation, Message, is_blank


class Candidate(NamedTuple):
    """The answer of one number with its score, None if nobody judged, and what the judge said."""

    number: int
    reply: Reply
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Picked:
    """What one question gives; `rejected` has a row for each answer not learned from, and one for a missing pair."""

    conversations: list[Conversation]
    preference: Preference | None
    rejected: list[dict[str, Any]]


@dataclass(frozen=True)
class Rule:
    """Which answers are good: those with at least `min_score`; of these the best one or all."""

    keep: Literal["best", "all"]
    min_score: float | None
    has_pairs: bool

    def pick(self, question: Question, candidates: Sequence[Candidate]) -> Picked:
        reasons: dict[int, str] = {}
        usable = _usable(candidates, reasons)
        good = [each for each in usable if not self._is_below(each)]
        for each in usable:
            if self._is_below(each):
                reasons[each.number] = f"the score is too low: {_score(each):.4g}, {each.reason}"
        # The first of the best: sorting keeps the order of equals.
        ranked = sorted(good, key=_score, reverse=True)
        kept = ranked[:1] if self.keep == "best" else good
        for each in good:
            if each not in kept:
                reasons[each.number] = f"another answer is as good or better: number {ranked[0].number}"
        preference, missing = self._pair(question, ranked, usable) if self.has_pairs else (None, "")
        rejected = [_rejection(question, each, reasons[each.number]) for each in candidates if each.number in reasons]
        rejected += [{"id": question.id, "reason": missing}] if missing else []
        return Picked([_conversation(question, each) for each in kept], preference, rejected)

    def _is_below(self, candidate: Candidate) -> bool:
        return self.min_score is not None and _score(candidate) < self.min_score

    def _pair(
        self, question: Question, ranked: Sequence[Candidate], usable: Sequence[Candidate]
    ) -> tuple[Preference | None, str]:
        if not ranked:
            return None, "no pair: no answer is good"
        best, worst = ranked[0], min(usable, key=_score)
        if _score(worst) >= _score(best):
            return None, "no pair: all answers have the same score"
        metadata = {"scores": [_score(best), _score(worst)], **question.conversation.metadata}
        prompt = replace(question.conversation, id="", metadata={})
        answers = (best.reply.message,), (worst.reply.message,)
        return Preference(prompt, *answers, id=question.id, metadata=metadata), ""


def _usable(candidates: Sequence[Candidate], reasons: dict[int, str]) -> list[Candidate]:
    """Return the whole answers, each once."""
    usable: dict[str, Candidate] = {}
    for each in candidates:
        message = each.reply.message
        said = repr((message.content.strip(), [(call.name, call.arguments) for call in message.tool_calls]))
        if each.reply.failure:
            reasons[each.number] = each.reply.failure
        elif is_blank(message.content) and not message.tool_calls:
            reasons[each.number] = "empty"
        elif said in usable:
            reasons[each.number] = f"said before: number {usable[said].number}"
        else:
            usable[said] = each
    return list(usable.values())


def _score(candidate: Candidate) -> float:
    return 0.0 if candidate.score is None else candidate.score


def _rejection(question: Question, candidate: Candidate, reason: str) -> dict[str, Any]:
    score = {} if candidate.score is None else {"score": candidate.score}
    answer: Message = candidate.reply.message
    return {"id": question.id, "number": candidate.number, "reason": reason, **score, "answer": answer.to_json()}


def _conversation(question: Question, candidate: Candidate) -> Conversation:
    asked = question.conversation.with_message(candidate.reply.message)
    score = {} if candidate.score is None else {"score": candidate.score}
    metadata = {**asked.metadata, "question": question.id, "number": candidate.number, **score}
    return replace(asked, id=f"{question.id}#{candidate.number}", metadata=metadata)
