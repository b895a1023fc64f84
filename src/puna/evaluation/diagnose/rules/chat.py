"""Fixed conversations that a run measured before and after training -> a chat model that no longer ends its answers.

`end` is the mean probability of the end of turn after a finished answer, `loss` the mean loss of the answers' tokens.
"""

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A chat model ends a finished answer with a probability of 0.3 to 1; a base model with less than 0.001.
LEAST_END = 0.1
# Chat counts as lost where less than this share of the probability is left: pages alone leave less than a thousandth,
# conversations of another kind move it by less than half.
LEAST_LEFT = 0.2
REMEDY = "Mix conversations into the data, run puna sft on conversations afterwards, or lower optim.lr."


def chat_at_risk(record: Record) -> Finding | None:
    """A model that answers in the chat format is about to be trained on text without a single conversation."""
    before = record.facts.get("chat")
    if before is None or before["end"] < LEAST_END or not record.facts.get("is_every_token"):
        return None
    if record.facts.get("num_conversations"):
        return None
    seen = f"The start model ends its answers (probability {before['end']:.2f}), and the data hold no conversation."
    return Finding("chat-at-risk", seen, REMEDY, ("lower rate",))


def chat_lost(record: Record) -> Finding | None:
    """The model ended its answers before the run and does not after it."""
    before, after = record.facts.get("chat"), record.facts.get("chat_after")
    if before is None or after is None or before["end"] < LEAST_END or after["end"] >= LEAST_LEFT * before["end"]:
        return None
    seen = f"The probability of the end after a finished answer was {before['end']:.2g} before this run and "
    seen += f"{after['end']:.2g} after it."
    return Finding("chat-lost", seen, REMEDY, ("lower rate",))
