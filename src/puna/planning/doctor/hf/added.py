"""Added tokens -> findings: differences between files, and special tokens marked as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from puna.formats.tokenizer.added import AddedToken
from puna.formats.tokenizer.beside import read_beside, role_text
from puna.formats.tokenizer.files import NAMED_TEXTS
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.planning.doctor.hf.opened import SPECIALS_MAP, TOKENIZER_CONFIG, Opened
from puna.planning.doctor.report import Report, listed

TOKENIZER = "tokenizer.json"
# Lists of further special tokens, by the older and the newer name.
LISTS = ("additional_special_tokens", "extra_special_tokens")


def describe_tokens(tokenizer: Tokenizer) -> str:
    """Return the number of ids of a tokenizer, and the numbers of special and text tokens among the added tokens."""
    counts = f"{tokenizer.vocab_size:,} ids, {len(tokenizer.special_ids):,} special"
    return counts + (f", {len(tokenizer.text_tokens):,} added as text" if tokenizer.text_tokens else "")


def check_added(opened: Opened, data: Any) -> None:
    """Compare the added tokens of tokenizer.json (`data`) with other tokenizer files and with Llama 3's."""
    entries = data.get("added_tokens", []) if isinstance(data, dict) else []
    added = {token.text: token for token in map(AddedToken.parse, entries)}
    as_text = [text for text in NAMED_TEXTS if text in added and not added[text].is_special]
    report_as_text(as_text, TOKENIZER, '"special": true', opened.report)
    _check_strips(added, opened.report)
    beside = read_beside(opened.path)
    for name, wrong in (
        (beside.name, list(_differing(added, beside.tokens))),
        (TOKENIZER_CONFIG, _listed_as_special(added, opened.json[TOKENIZER_CONFIG])),
        (SPECIALS_MAP, _listed_as_special(added, opened.json[SPECIALS_MAP])),
    ):
        if wrong:
            remedy = f"Say the same in both. Puna reads {TOKENIZER}, then the other file, as transformers does"
            opened.report.add("added-disagrees", name, listed(wrong), remedy)


def report_as_text(texts: Sequence[str], where: str, expected: str, report: Report) -> None:
    """Report special tokens of the chat format with a text flag in `where`."""
    if texts:
        remedy = "Mark them as special: elsewhere a user's text can open a turn. Puna takes them as special anyway"
        report.add("special-as-text", where, f"{listed(list(texts))} marked as text; expected {expected}", remedy)


def _check_strips(added: Mapping[str, AddedToken], report: Report) -> None:
    strips = [token.text for token in added.values() if token.is_special and (token.lstrip or token.rstrip)]
    if strips:
        what = f"{listed(strips)} with lstrip or rstrip; expected false, as Llama 3 has it"
        remedy = "Set both to false, unless the model was trained without the space there"
        report.add("special-strips", TOKENIZER, what, remedy)


def _differing(added: Mapping[str, AddedToken], beside: Sequence[AddedToken]) -> Iterator[str]:
    for token in beside:
        known = added.get(token.text)
        if known is None:
            yield f"{token.text!a:.60} is {token.id} here, and not in {TOKENIZER}"
        elif known.id != token.id:
            yield f"{token.text!a:.60} is {token.id} here, {known.id} in {TOKENIZER}"
        elif known.is_special != token.is_special:
            yield f"{token.text!a:.60} is {_kind(token)} here, {_kind(known)} in {TOKENIZER}"


def _kind(token: AddedToken) -> str:
    return "special" if token.is_special else "text"


def _listed_as_special(added: Mapping[str, AddedToken], raw: Mapping[str, Any]) -> list[str]:
    """Return tokens in lists of special tokens with a text flag in tokenizer.json; transformers keeps the flag."""
    texts = [role_text(each) for name in LISTS if isinstance(raw.get(name), list) for each in raw[name]]
    as_text = [text for text in texts if text and text in added and not added[text].is_special]
    return [f"{text!a:.60} is listed as special here, text in {TOKENIZER}" for text in dict.fromkeys(as_text)]
