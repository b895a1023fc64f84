"""Real pages -> questions whose answer is a span of the page, and how many of them checkpoints answer.

    python benchmarks/real_pages.py PAGES.jsonl.gz ... --checkpoint recipes/teacher --checkpoint build/old_teacher

A file of pages has one JSON object a line with `text` (Markdown) and `id`. Each page is turned into plain text (links
lose their targets) and cut into passages of at most 900 characters. A span is an e-mail address, a web address, an
amount, a percentage, a date, a time, a number with its unit or a name of several words. A question names words of the
span's sentence that stand nowhere else in the passage; an answer is right if it contains the span and no span of the
same kind from another sentence. The templates are fixed and read no grammar, so some questions are clumsy. `--limit`
questions are drawn, evenly over the pages. For comparison, a sentence of the passage drawn at random is graded, too.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from puna.evaluation.tasks import GRADES, Question
from puna.evaluation.tasks.intervals import difference_interval, score_interval
from puna.formats.chat.conversation import Conversation, Message
from puna.inference.completer.completer import Prompt, Sampling
from puna.inference.completer.local import LocalCompleter

MAX_PASSAGE, MIN_PASSAGE = 900, 200  # characters
MIN_SENTENCE = 6  # words
MAX_NAMES = 0.2  # share of the questions that ask for a name
MAX_TOKENS = 96
SYSTEM = "You are the assistant of this office. Answer from this page."
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
SPANS = {
    "e-mail": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "web": re.compile(r"(?:https?://|www\.)[^\s)\]>\"'|]+[\w/]"),
    "amount": re.compile(r"\$\d[\d,]*(?:\.\d+)?(?: (?:million|billion))?"),
    "percent": re.compile(r"\d+(?:\.\d+)?(?:%| percent)"),
    "date": re.compile(
        rf"(?:{MONTHS}) \d{{1,2}}(?:, \d{{4}})?|\d{{1,2}} (?:{MONTHS})(?: \d{{4}})?|(?:{MONTHS}) \d{{4}}"
    ),
    "time": re.compile(r"\d{1,2}(?::\d\d)? ?(?:[ap]\.?m\b\.?)|\d{1,2}:\d\d"),
    "number": re.compile(r"(?<![\w.$,/-])\d+(?:,\d{3})*(?:-\d+)?(?= [a-z]{3,})"),
    "name": re.compile(r"(?<=[a-z,] )(?:[A-Z][a-z]+ ){1,3}[A-Z][a-z]+"),
}
ASKING = {
    "e-mail": "Which e-mail address is given for {key}?",
    "web": "Which website is given for {key}?",
    "amount": "How much money is it for {key}?",
    "percent": "How many percent are named for {key}?",
    "date": "When is it for {key}?",
    "number": "How many {rest}?",
    "time": "At what time is it for {key}?",
}
ABOUT = "What does the page say about {key}?"
# No key begins or ends with one of these.
# fmt: off
STOP_WORDS = {
    "about", "above", "after", "also", "another", "because", "been", "before", "between", "could", "does", "each",
    "every", "from", "give", "given", "have", "here", "include", "includes", "into", "just", "like", "made", "make",
    "many", "more", "most", "must", "only", "other", "over", "same", "should", "some", "such", "than", "that", "their",
    "them", "then", "there", "these", "they", "this", "those", "through", "under", "until", "very", "what", "when",
    "where", "which", "while", "will", "with", "within", "would", "your",
}
# fmt: on


class Span(NamedTuple):
    """A text of a passage that can be asked for."""

    kind: str
    text: str
    sentence: str


def read_passages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the page's name and text of each passage: whole paragraphs up to MAX_PASSAGE characters."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            page = json.loads(line)
            passage = ""
            for paragraph in [*re.split(r"\n\s*\n", to_plain_text(page["text"])), ""]:
                if passage and (not paragraph or len(passage) + len(paragraph) > MAX_PASSAGE):
                    if MIN_PASSAGE <= len(passage) <= MAX_PASSAGE:
                        yield f"{path.name}/{page['id']}", passage
                    passage = ""
                passage = f"{passage}\n\n{paragraph.strip()}".strip()


def to_plain_text(markdown: str) -> str:
    """Return the text of a page as a reader sees it, without the targets of links."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->|\{[%{:].*?[%}]\}+|\{:[^}]*\}", "", markdown, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"<(https?://[^>]+|[\w.+-]+@[\w.-]+)>", r"\1", text)
    text = re.sub(r"</?[A-Za-z][^>]*>|\*\*|__|`|^---.*?^---", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<=[^\n.:]) *\n(?=[a-z(])", " ", text)  # lines wrapped in the middle of a sentence


def split_sentences(passage: str) -> list[str]:
    """Split at the ends of sentences, items of lists and paragraphs; headings and short pieces are left out."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z*#-])|\n(?=\s*[*#-] |\s*\d+\. )|\n\n", passage)
    whole = [part for part in parts if len(part.split()) >= MIN_SENTENCE and not part.startswith(("#", "|"))]
    return whole or [passage]


def find_spans(passage: str) -> list[Span]:
    """List the spans of a passage; no character belongs to two, and the kinds are tried in the order of SPANS."""
    found: list[Span] = []
    for sentence in split_sentences(passage):
        taken: list[range] = []
        for kind, pattern in SPANS.items():
            for match in pattern.finditer(sentence):
                place = range(*match.span())
                if not any(place.start < other.stop and other.start < place.stop for other in taken):
                    taken.append(place)
                    found.append(Span(kind, match.group(), " ".join(sentence.split())))
    return found


def find_key(span: Span, passage: str) -> str:
    """Return one to three words of the sentence that stand once in the passage, longest first; "" if there are none."""
    before, _, after = span.sentence.partition(span.text)
    candidates: list[str] = []
    for part in (before, after):
        words = re.findall(r"[A-Za-z]+(?:['’-][A-Za-z]+)?", part)
        text = " ".join(part.split())
        for size in (3, 2, 1):
            for start in range(len(words) - size + 1):
                key = " ".join(words[start : start + size])
                ends = words[start], words[start + size - 1]
                is_whole = min(map(len, ends)) > 3 and key in text and len(key) > 6
                is_whole = is_whole and not STOP_WORDS.intersection(word.lower() for word in ends)
                if is_whole and " ".join(passage.split()).lower().count(key.lower()) == 1:
                    candidates.append(key)
    return max(candidates, key=len, default="")


def ask(page: str, number: int, passage: str, span: Span, spans: Sequence[Span]) -> Iterator[Question]:
    """Ask for a span in up to two forms: by its kind, and by what the page says about the key."""
    key = find_key(span, passage)
    rest = re.split(r"[.,;:()\n*\[]", span.sentence.partition(span.text)[2])[0].split()[:8]
    forms = {"about": ABOUT} | ({"kind": ASKING[span.kind]} if span.kind in ASKING else {})
    others = {
        other.text
        for other in spans
        if other.kind == span.kind and other.sentence != span.sentence and other.text not in span.sentence
    }
    for form, template in forms.items():
        if not (len(rest) > 1 if "{rest}" in template else key):
            continue
        question = template.format(key=key, rest=" ".join(rest))
        messages = (Message("system", f"{SYSTEM}\n\n{passage}"), Message("user", question))
        expected = {"contains": [span.text], "distractors": sorted(others)}
        yield Question(f"{page}/{number}/{form}/{span.kind}", Conversation(messages), expected, group=page)


def make_questions(paths: Sequence[Path], limit: int) -> list[Question]:
    """Draw at most `limit` questions, one page after the other until there are enough."""
    by_page: dict[str, list[Question]] = {}
    for path in paths:
        for number, (page, passage) in enumerate(read_passages(path)):
            spans = find_spans(passage)
            alone = [span for span in spans if passage.count(span.text) == 1]
            for span in alone:
                by_page.setdefault(page, []).extend(ask(page, number, passage, span, spans))
    rng = Random(0)
    for questions in by_page.values():
        rng.shuffle(questions)
    pages = sorted(by_page)
    rng.shuffle(pages)
    chosen: list[Question] = []
    num_names = 0
    while len(chosen) < limit and any(by_page.values()):
        for page in pages:
            question = by_page[page].pop() if by_page[page] and len(chosen) < limit else None
            is_name = question is not None and question.id.endswith("/name")
            if question and not (is_name and num_names >= MAX_NAMES * limit):
                chosen.append(question)
                num_names += is_name
    return chosen


def show_scores(name: str, questions: Sequence[Question], scores: Sequence[float]) -> None:
    """Print the score of all questions and of each form and kind, with 95 % intervals by page."""
    slices: dict[str, list[int]] = {"all": list(range(len(questions)))}
    for at, question in enumerate(questions):
        for label in question.id.split("/")[-2:]:
            slices.setdefault(label, []).append(at)
    for label, places in slices.items():
        interval = score_interval([scores[at] for at in places], [questions[at].group for at in places])
        shown = f"{interval.mean:6.1%} ({interval.low:.1%} to {interval.high:.1%})"
        print(f"  {name:24} {label:8} {len(places):5}  {shown}")


def main() -> None:
    """Make the questions, ask each checkpoint and print scores, differences and examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="files of pages: .jsonl.gz with `id` and `text`")
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="checkpoint to ask; repeatable")
    parser.add_argument("--limit", type=int, default=300, help="number of questions, at most")
    parser.add_argument("--examples", type=int, default=8, help="number of questions to show with all answers")
    arguments = parser.parse_args()
    questions = make_questions(arguments.pages, arguments.limit)
    print(f"{len(questions)} questions about {len({question.group for question in questions})} pages")
    passages = [question.conversation.messages[0].content.partition("\n\n")[2] for question in questions]
    rng = Random(2)
    answers = {"a sentence at random": [Message("assistant", rng.choice(split_sentences(text))) for text in passages]}
    for path in arguments.checkpoint:
        model, sampling = LocalCompleter.open(path), Sampling(max_tokens=MAX_TOKENS)
        replies = model.complete([Prompt(question.conversation) for question in questions], sampling)
        answers[str(path)] = [reply.message for reply in replies]
    scores = {
        name: [GRADES["contains"](*pair).score for pair in zip(questions, messages, strict=True)]
        for name, messages in answers.items()
    }
    for name, values in scores.items():
        show_scores(name, questions, values)
    first, *others = map(str, arguments.checkpoint)
    for other in others:
        interval = difference_interval(scores[first], scores[other], [question.group for question in questions])
        print(f"  {first} - {other}: {interval.mean:+.1%} ({interval.low:+.1%} to {interval.high:+.1%})")
    for at in Random(1).sample(range(len(questions)), min(arguments.examples, len(questions))):
        print(
            f"\n{questions[at].conversation.messages[-1].content}\n  expected {questions[at].expected['contains'][0]!r}"
        )
        for path in map(str, arguments.checkpoint):
            print(f"  {path} [{scores[path][at]:.0f}]: {answers[path][at].content!r}")


if __name__ == "__main__":
    main()
