"""Probability of the end of turn before and after training -> findings about a chat model that no longer ends answers.

The run measures fixed conversations: `end` is the mean probability of the end-of-turn token after a finished answer.
"""

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A chat model ends a finished answer with a probability of 0.3 to 1; a base model with less than 0.001.
LEAST_END = 0.1
# Chat counts as lost below this share of the probability before training. Training on pages alone leaves less than a
# thousandth; conversations of another kind change the probability by less than half.
LEAST_LEFT = 0.2
REMEDY = "Mix conversations into the data, run puna sft on conversations afterwards, or lower optim.lr."


def chat_at_risk(record: Record) -> Finding | None:
    """A chat model is about to be trained on text without conversations."""
    before = record.facts.get("chat")
    if before is None or before["end"] < LEAST_END or not record.facts.get("is_every_token"):
        return None
    if record.facts.get("num_conversations"):
        return None
    seen = f"The start model ends its answers (probability {before['end']:.2f}), and the data hold no conversation."
    return Finding("chat-at-risk", seen, REMEDY, ("lower rate",))


def chat_lost(record: Record) -> Finding | None:
    """The model ended its answers before the run, and not after the run."""
    before, after = record.facts.get("chat"), record.facts.get("chat_after")
    if before is None or after is None or before["end"] < LEAST_END or after["end"] >= LEAST_LEFT * before["end"]:
        return None
    seen = f"The probability of the end after a finished answer was {before['end']:.2g} before this run and "
    seen += f"{after['end']:.2g} after it."
    return Finding("chat-lost", seen, REMEDY, ("lower rate",))
