"""Counts of trained tokens and facts of the training text -> what is wrong with what was learned from."""

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A conversation with a page of 2,000 tokens before an answer of 40 has 2 % of its tokens trained.
LEAST_TRAINED = 0.01
# An answer of four words and its end is 20 % formatting; the demo's answers and calls are 9 %.
MOST_FORMATTING = 0.8
MOST_DROPPED = 0.05
MOST_EMPTY_STEPS = 0.2


def mask_empty(record: Record) -> Finding | None:
    """No token was trained, or none in many of the steps."""
    counts = record.values("trained")
    if not len(counts) or (counts == 0).mean() <= MOST_EMPTY_STEPS:
        return None
    seen = f"In {(counts == 0).sum():,} of {len(counts):,} steps no token was trained."
    return Finding("mask-empty", seen, "Look at the mask: train on conversations that the assistant speaks in.")


def mask_thin(record: Record) -> Finding | None:
    """Hardly any token was trained."""
    trained, read = record.total("trained"), record.rows[-1].get("tokens")
    if not trained or not read or trained / read >= LEAST_TRAINED:
        return None
    seen = f"{trained:,.0f} of {read:,} tokens were trained, {trained / read:.2%}."
    remedy = "Shorten what stands before the answers, or learn from more turns (every_token takes the whole text)."
    return Finding("mask-thin", seen, remedy)


def mask_formatting(record: Record) -> Finding | None:
    """What was trained is white space and special tokens."""
    trained, formatting = record.total("trained"), record.total("formatting")
    if not trained or formatting is None or formatting / trained <= MOST_FORMATTING:
        return None
    seen = f"{formatting / trained:.0%} of the trained tokens are special tokens or white space."
    return Finding("mask-formatting", seen, "Look at the answers in the data: most of them are empty or cut off.")


def mask_no_end(record: Record) -> Finding | None:
    """Tokens were trained, but never the one that ends an answer."""
    trained, ends = record.total("trained"), record.total("ends")
    # Long documents that are cut into pieces may end nowhere in a short run.
    if not trained or ends or ends is None or record.facts.get("is_every_token"):
        return None
    seen = f"None of {trained:,.0f} trained tokens ends a message."
    remedy = "Train on the end token of each answer (eot_id, or eom_id after a call)."
    return Finding("mask-no-end", seen, remedy)


def rows_dropped(record: Record) -> Finding | None:
    """Many rows did not fit the context and were passed over."""
    dropped, rows, epochs = (record.facts.get(name) for name in ("num_too_long", "num_rows", "epochs"))
    if not (dropped and rows and epochs) or dropped / (rows * epochs) <= MOST_DROPPED:
        return None
    share, context = dropped / (rows * epochs), record.config.get("context")
    seen = f"{share:.0%} of the rows are longer than the context of {context} tokens and were passed over."
    return Finding("rows-dropped", seen, "Raise context (and batch_tokens with it), or cut the rows yourself.")


def prompt_differs(record: Record) -> Finding | None:
    """The text before the first answer is not what a server would send."""
    found = record.facts.get("conversations", {})
    share = found.get("asked_otherwise", 0)
    if not share:
        return None
    seen = f"In {share:.0%} of {found['num_looked_at']} rows the training text begins otherwise than the prompt that a "
    seen += "server makes of the same conversation."
    return Finding("prompt-differs", seen, "Encode rows with ChatFormat (chat/format.py) alone.")
