"""Counts of trained tokens and facts about the training text -> findings about the loss mask and dropped rows."""

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A conversation with a page of 2,000 tokens before an answer of 40 has 2 % of its tokens trained.
LEAST_TRAINED = 0.01
# An answer of four words and its end is 20 % formatting; the demo's answers and calls are 9 %.
MOST_FORMATTING = 0.8
MOST_DROPPED = 0.05
MOST_EMPTY_STEPS = 0.2


def mask_empty(record: Record) -> Finding | None:
    """Many steps have no trained token."""
    counts = record.values("trained")
    if not len(counts) or (counts == 0).mean() <= MOST_EMPTY_STEPS:
        return None
    seen = f"In {(counts == 0).sum():,} of {len(counts):,} steps no token was trained."
    return Finding("mask-empty", seen, "Look at the loss mask: train on conversations with messages of the assistant.")


def mask_thin(record: Record) -> Finding | None:
    """The share of trained tokens is tiny."""
    trained, read = record.total("trained"), record.rows[-1].get("tokens")
    if not trained or not read or trained / read >= LEAST_TRAINED:
        return None
    seen = f"{trained:,.0f} of {read:,} tokens were trained, {trained / read:.2%}."
    remedy = "Shorten the text before the answers, or learn from more turns (every_token takes the whole text)."
    return Finding("mask-thin", seen, remedy)


def mask_formatting(record: Record) -> Finding | None:
    """Most trained tokens are white space or special tokens."""
    trained, formatting = record.total("trained"), record.total("formatting")
    if not trained or formatting is None or formatting / trained <= MOST_FORMATTING:
        return None
    seen = f"{formatting / trained:.0%} of the trained tokens are special tokens or white space."
    return Finding("mask-formatting", seen, "Look at the answers in the data: most of them are empty or cut off.")


def mask_no_end(record: Record) -> Finding | None:
    """No trained token ends an answer."""
    trained, ends = record.total("trained"), record.total("ends")
    # A short run on pieces of long documents may contain no end.
    if not trained or ends or ends is None or record.facts.get("is_every_token"):
        return None
    seen = f"None of {trained:,.0f} trained tokens ends a message."
    remedy = "Train on the end token of each answer (eot_id, or eom_id after a call)."
    return Finding("mask-no-end", seen, remedy)


def rows_dropped(record: Record) -> Finding | None:
    """Many rows were longer than the context, and were dropped."""
    dropped, rows, epochs = (record.facts.get(name) for name in ("num_too_long", "num_rows", "epochs"))
    if not (dropped and rows and epochs) or dropped / (rows * epochs) <= MOST_DROPPED:
        return None
    share, context = dropped / (rows * epochs), record.config.get("context")
    seen = f"{share:.0%} of the rows are longer than the context of {context} tokens and were dropped."
    return Finding("rows-dropped", seen, "Raise context and batch_tokens, or split the rows.")


def prompt_differs(record: Record) -> Finding | None:
    """The text before the first answer differs from the server's prompt."""
    conversations = record.facts.get("conversations", {})
    share = conversations.get("asked_otherwise", 0)
    if not share:
        return None
    seen = f"In {share:.0%} of {conversations['num_looked_at']} rows the training text begins differently from the "
    seen += "server's prompt for the same conversation."
    return Finding("prompt-differs", seen, "Encode rows with ChatFormat (formats/chat/format.py) only.")
