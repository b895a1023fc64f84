"""Why every kind of finding about a run or a data set matters: REASONS by the finding's code."""

from puna.pipeline.finding import Finding

# Finding code -> why the finding matters.
REASONS: dict[str, str] = {
    "teacher-not-better": "A student imitates its teacher; a teacher that is no better has nothing to give.",
    "teacher-foresees-worse": "The teacher predicts the training text worse than the student: steps toward the teacher "
    "lead away from the text.",
    "mask-empty": "Only tokens in the loss mask change the weights.",
    "mask-thin": "The run computes the whole text, but hardly any token counts in the loss.",
    "mask-formatting": "The model learns where a message begins and ends, but not the content.",
    "mask-no-end": "A model that never learns to end a message writes until the length limit.",
    "rows-dropped": "Dropped rows teach nothing, and long conversations differ from short ones.",
    "prompt-differs": "A model answers best in the prompt format of its training; the server uses another format.",
    "questions-differ": "A model answers best the kind of question seen in training; these questions are of another "
    "kind.",
    "labels-cut": "The student never sees the probabilities outside the stored tokens, and learns another distribution "
    "than the teacher's.",
    "labels-flat": "Labels that give nearly every token the same probability carry hardly any information.",
    "entropy-gap": "A student that has learned the teacher's distribution is about as certain as the teacher.",
    "capacity": "The student comes no closer to the training text, and more of the same training will not help.",
    "steps-few": "The run ended while the loss was still falling.",
    "warmup-long": "Until the end of the warm-up the learning rate is below the chosen rate.",
    "loss-diverged": "Steps that are too large undo earlier progress.",
    "rate-high": "Steps that are too large move the weights to and fro: the loss falls only with smaller steps.",
    "loss-stuck": "The steps were too small, or led in no useful direction.",
    "loss-jumps": "Single steps that raise the loss undo part of the progress.",
    "steps-skipped": "The loop skips a step without finite numbers; many such steps mean that the run is close to "
    "divergence.",
    "gradient-clipped": "The clipping limit, and not the loss, sets the length of every step.",
    "forgot-general": "The new data overwrote abilities of the start model.",
    "forgot-start": "The new data overwrote what the start model had learned.",
    "tokenizer-differs": "The two tokenizers split text differently, and a probability of one tokenizer's token has no "
    "counterpart in the other.",
    "spans-few": "The teacher gives a target only where both tokenizers split the text at the same places.",
    "chat-differs": "A teacher outside the chat format of its training answers worse than it could.",
    "overfitting": "The model memorizes the training text and gets worse on other text.",
    "data-small": "Text that is read many times is memorized: every further epoch teaches less.",
    "data-duplicated": "Repeated rows count several times, and are memorized first.",
    "data-near-duplicated": "Nearly equal rows count nearly twice, and are memorized first.",
    "answers-equal": "A model learns to give the most frequent answer to every question.",
    "answers-empty": "A model learns to say nothing.",
    "answers-differ": "A model cannot learn two answers to one question: it learns a mixture.",
    "rows-rejected": "Unreadable records teach nothing.",
    "chat-at-risk": "Training on text without conversations overwrites where an answer begins and ends.",
    "chat-lost": "A model that no longer ends its answers writes until the length limit, whatever it knows.",
    "budget-differs": "A comparison of two methods needs the same amount of the same data.",
}


def to_json(finding: Finding) -> dict[str, str]:
    """Return a finding as run reports and data reports store findings, with the reason why the finding matters."""
    return {"code": finding.code, "seen": finding.seen, "reason": REASONS[finding.code], "remedy": finding.remedy}
