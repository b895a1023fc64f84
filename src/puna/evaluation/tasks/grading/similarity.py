"""Reference and answer -> chrF, the share of character n-grams in common. Only reports use the figure.

Source: Popović (2015), "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015, with n = 1 to 6 and
beta = 2, white space left out, as in sacrebleu by default.
"""

from collections import Counter

from puna.evaluation.tasks.question import Question

MAX_N = 6
BETA = 2.0


def reference_of(question: Question) -> str:
    """Return the reference answer of a question, "" for grades without a reference.

    Example:
        >>> reference_of(Question("1", conversation, {"reference": "At nine."}))
        'At nine.'
    """
    return question.expected.get("reference") or question.expected.get("exact") or ""


def chrf(reference: str, answer: str) -> float:
    """Return the F-score of averaged n-gram precision and recall, 0 to 1.

    Example:
        >>> chrf("It costs 5 euros.", "It costs 5 euros.")
        1.0
    """
    reference_text, answer_text = "".join(reference.split()), "".join(answer.split())
    precision = recall = 0.0
    orders = range(1, min(MAX_N, len(reference_text), len(answer_text)) + 1)
    for n in orders:
        reference_counts, answer_counts = _ngrams(reference_text, n), _ngrams(answer_text, n)
        num_common = (reference_counts & answer_counts).total()
        precision += num_common / answer_counts.total() / len(orders)
        recall += num_common / reference_counts.total() / len(orders)
    total = BETA**2 * precision + recall
    return (1 + BETA**2) * precision * recall / total if total else 0.0


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))
