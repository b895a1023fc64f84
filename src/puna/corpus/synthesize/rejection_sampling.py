"""Scored answers to a question -> conversations for training, a preference pair, and rejected answers with reasons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from puna.corpus.synthesize.answer_sampling import Reply
from puna.data.preference import Preference
from puna.evaluation.tasks.question import Question
from puna.formats.chat.conversation import Conversation, Message, is_blank


class Candidate(NamedTuple):
    """Answer `number` to a question, with the judge's score and reason; score None without a judge."""

    number: int
    reply: Reply
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Selected:
    """Training data of one question; `rejected` holds a row per rejected answer, and a row for a missing pair."""

    conversations: list[Conversation]
    preference: Preference | None
    rejected: list[dict[str, Any]]


@dataclass(frozen=True)
class SelectionRule:
    """Selection of answers: scores of at least `min_score` are good; `keep` takes the best good answer or all.

    Example:
        >>> rule = SelectionRule("best", min_score=1.0, has_pairs=False)
        >>> len(rule.select(question, candidates).conversations)
        1
    """

    keep: Literal["best", "all"]
    min_score: float | None
    has_pairs: bool

    def select(self, question: Question, candidates: Sequence[Candidate]) -> Selected:
        """Select from all answers to a question."""
        reasons: dict[int, str] = {}
        usable = _usable(candidates, reasons)
        good = [answer for answer in usable if not self._is_below(answer)]
        for answer in usable:
            if self._is_below(answer):
                reasons[answer.number] = f"the score is too low: {_score(answer):.4g}, {answer.reason}"
        # Python's sort is stable: the first of equal answers wins.
        ranked = sorted(good, key=_score, reverse=True)
        chosen = ranked[:1] if self.keep == "best" else good
        for answer in good:
            if answer not in chosen:
                reasons[answer.number] = f"another answer is as good or better: number {ranked[0].number}"
        preference, missing = self._pair(question, ranked, usable) if self.has_pairs else (None, "")
        rejected = [
            _rejection(question, answer, reasons[answer.number]) for answer in candidates if answer.number in reasons
        ]
        rejected += [{"id": question.id, "reason": missing}] if missing else []
        return Selected([_conversation(question, answer) for answer in chosen], preference, rejected)

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
    """Return complete answers without duplicates; add the reasons against the others to `reasons`."""
    usable: dict[str, Candidate] = {}
    for candidate in candidates:
        message = candidate.reply.message
        said = repr((message.content.strip(), [(call.name, call.arguments) for call in message.tool_calls]))
        if candidate.reply.failure:
            reasons[candidate.number] = candidate.reply.failure
        elif is_blank(message.content) and not message.tool_calls:
            reasons[candidate.number] = "empty"
        elif said in usable:
            reasons[candidate.number] = f"said before: number {usable[said].number}"
        else:
            usable[said] = candidate
    return list(usable.values())


def _score(candidate: Candidate) -> float:
    return 0.0 if candidate.score is None else candidate.score


def _rejection(question: Question, candidate: Candidate, reason: str) -> dict[str, Any]:
    score = {} if candidate.score is None else {"score": candidate.score}
    answer: Message = candidate.reply.message
    return {"id": question.id, "number": candidate.number, "reason": reason, **score, "answer": answer.to_json()}


def _conversation(question: Question, candidate: Candidate) -> Conversation:
    conversation = question.conversation.with_message(candidate.reply.message)
    score = {} if candidate.score is None else {"score": candidate.score}
    metadata = {**conversation.metadata, "question": question.id, "number": candidate.number, **score}
    return replace(conversation, id=f"{question.id}#{candidate.number}", metadata=metadata)
