"""Why every kind of finding about a run or a data set matters: REASONS by the finding's code."""

from puna.pipeline.finding import Finding

REASONS: dict[str, str] = {
    "teacher-not-better": "A student learns to be like its teacher; from one that is no better it gains nothing.",
    "teacher-foresees-worse": "The text's own words are a better guide than this teacher: each step that follows the "
    "teacher leads away from them.",
    "mask-empty": "Only trained tokens move the weights.",
    "mask-thin": "The whole text is computed but hardly any of it is learned from.",
    "mask-formatting": "The model learns where a message begins and ends, not what it says.",
    "mask-no-end": "A model that is never taught to end goes on until it is cut off.",
    "rows-dropped": "What is passed over is not learned, and long conversations are not like short ones.",
    "prompt-differs": "A model answers best to what it was trained on; here it is asked in another form.",
    "questions-differ": "A model answers best to what it was trained on; the questions are of another kind.",
    "labels-cut": "What lies outside the stored tokens is unknown to the student: it learns another distribution than "
    "the teacher's.",
    "labels-flat": "Labels that give nearly every token the same chance say hardly anything.",
    "entropy-gap": "A student that has learned its teacher's distribution is about as sure as the teacher.",
    "capacity": "The student does not get nearer to what it is shown, so that more of the same training does not help.",
    "steps-few": "The run ended before the student had learned what it was learning.",
    "warmup-long": "Until the warm-up's end the learning rate is below the one that was chosen.",
    "loss-diverged": "Steps that are too large undo what was learned.",
    "rate-high": "Steps that are too large throw the weights to and fro: they learn only once the steps get smaller.",
    "loss-stuck": "The weights were moved too little, or in no direction that helps.",
    "loss-jumps": "Single steps that throw the loss up undo part of what was learned.",
    "steps-skipped": "A step without finite numbers is left out; many mean that the run is at the edge of breaking.",
    "gradient-clipped": "Each step's length is set by the limit and no more by the loss.",
    "forgot-general": "What the start model could do was overwritten by the new data.",
    "forgot-start": "What the start model had learned was overwritten by the new data.",
    "tokenizer-differs": "The two cut text into different tokens, so that a token's probability of one is not one of "
    "the other.",
    "spans-few": "Only where both tokenizers cut at the same places does the teacher say anything to the student.",
    "chat-differs": "A teacher that is not asked in the form it was trained in answers worse than it could.",
    "overfitting": "The model learns its training text by heart and gets worse on other text.",
    "data-small": "What is read many times is remembered, not understood: each further time teaches less.",
    "data-duplicated": "Rows that are there twice count twice, and are learned by heart first.",
    "data-near-duplicated": "Rows that are nearly the same count nearly twice, and are learned by heart first.",
    "answers-equal": "A model learns to give the most frequent answer to every question.",
    "answers-empty": "A model learns to say nothing.",
    "answers-differ": "A model cannot learn two answers to one question: it learns something between them.",
    "rows-rejected": "Records that cannot be read are not learned from.",
    "chat-at-risk": "Training on text without conversations overwrites where an answer begins and ends.",
    "chat-lost": "A model that no longer ends its answers goes on until it is cut off, whatever it knows.",
    "budget-differs": "Two runs tell which way is better only if both saw as much of the same data.",
}


def to_json(finding: Finding) -> dict[str, str]:
    """Return a finding as run reports and data reports store findings, with the reason why the finding matters."""
    return {"code": finding.code, "seen": finding.seen, "reason": REASONS[finding.code], "remedy": finding.remedy}
