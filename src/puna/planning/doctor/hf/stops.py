"""Stop and padding tokens in the four JSON files of a directory -> findings."""

from typing import Any

from puna.formats.checkpoint.hf.config import parse_stop_ids
from puna.formats.tokenizer.beside import role_text
from puna.planning.doctor.hf.opened import CONFIG, GENERATION, SPECIALS_MAP, TOKENIZER_CONFIG, Opened
from puna.planning.doctor.report import listed

STOPS = {"eot_id": "the end of a turn", "eom_id": "the end of a tool call", "end_of_text": "the end of a text"}
ROLES = ("bos_token", "eos_token", "pad_token")
PAD = "<|finetune_right_pad_id|>"


def check_stops(opened: Opened) -> None:
    """Report missing stop tokens and differences between two files."""
    report = opened.report
    stops: dict[str, tuple[int, ...]] = {}
    for name in (CONFIG, GENERATION):
        stops[name] = ()
        with report.attempt("config-unsupported", name):
            stops[name] = parse_stop_ids(opened.json[name], opened.path / name)
    first, second = set(stops[CONFIG]), set(stops[GENERATION])
    if first and second and first != second:
        what = f"eos_token_id is {_ids(first)} in {CONFIG}, {_ids(second)} here; expected the same"
        remedy = "Write the same list into both; generate() takes this file's, other programs the other's"
        report.add("stop-disagrees", GENERATION, what, remedy)
    used, where = (second, GENERATION) if second else (first, CONFIG)
    _check_range(opened, used | first)
    specials = opened.tokenizer.special_ids if opened.tokenizer else {}
    missing = [name for name in STOPS if name in specials and specials[name] not in used]
    if opened.template is None:  # a base model only needs end_of_text
        missing = [name for name in missing if name == "end_of_text"]
    remedy = f"Write eos_token_id = {_ids({specials[name] for name in STOPS if name in specials})} into {where}"
    if "eot_id" in missing:
        what = f"eos_token_id is {_ids(used)}; expected {specials['eot_id']} (<|eot_id|>, the end of a turn) among it"
        report.add("stop-missing", where, what, remedy)
    elif missing:
        names = ", ".join(f"{specials[name]} (<|{name}|>, {STOPS[name]})" for name in missing)
        report.add("stop-incomplete", where, f"eos_token_id is {_ids(used)}; expected {names} as well", remedy)


def check_padding(opened: Opened) -> None:
    """Report a stop token as padding, or a missing padding token."""
    report = opened.report
    has_padding = False
    specials = opened.tokenizer.special_ids if opened.tokenizer else {}
    named = {specials[name]: f"<|{name}|>" for name in STOPS if name in specials}
    remedy = f"Take {PAD} ({specials.get('finetune_right_pad_id', 128_004)}) for padding, which is what it is there for"
    for name in (CONFIG, GENERATION):
        pad = opened.json[name].get("pad_token_id")
        if type(pad) is not int:
            continue
        has_padding = True
        _check_range(opened, {pad})
        if pad in named or pad in _eos_ids(opened.json[name]):
            what = f"pad_token_id = {pad}{f' ({named[pad]})' if pad in named else ''}, a stop token"
            report.add("pad-is-eos", name, f"{what}: what leaves padding out of the loss leaves the stop out", remedy)
    for name in (TOKENIZER_CONFIG, SPECIALS_MAP):
        pad, eos = (role_text(opened.json[name].get(role)) for role in ("pad_token", "eos_token"))
        if pad is None:
            continue
        has_padding = True
        if pad == eos or pad in named.values():
            what = f"pad_token = {pad!a:.80}, a stop token: what leaves padding out of the loss leaves the stop out"
            report.add("pad-is-eos", name, what, remedy)
    if not has_padding:
        what = f"no padding token in {CONFIG}, {GENERATION} or {TOKENIZER_CONFIG}"
        report.add("pad-missing", TOKENIZER_CONFIG, what, remedy)


def check_roles(opened: Opened) -> None:
    """Report role tokens outside the vocabulary, which loaders add as new ids."""
    if opened.tokenizer is None:
        return
    known = {f"<|{name}|>" for name in opened.tokenizer.special_ids} | set(opened.tokenizer.special_ids)
    for name in (TOKENIZER_CONFIG, SPECIALS_MAP):
        roles = {role: role_text(opened.json[name].get(role)) for role in ROLES}
        wrong = [f"{role} = {text!a:.60}" for role, text in roles.items() if text and text not in known]
        if wrong:
            remedy = "Name a token that tokenizer.json has; loaders add an unknown one behind the embeddings' last row"
            report = opened.report
            report.add("special-unknown", name, f"{', '.join(wrong)}; expected one of the tokenizer's", remedy)


def _check_range(opened: Opened, ids: set[int]) -> None:
    size = opened.config.vocab_size if opened.config else None
    beyond = sorted(token_id for token_id in ids if size is not None and not -1 <= token_id < size)
    already = any(finding.code == "id-out-of-range" for finding in opened.report.findings)
    if beyond and not already:
        what = f"token ids {_ids(set(beyond))}; expected ids below {size:,}, the number of embeddings"
        remedy = "Write the ids that tokenizer.json gives these tokens"
        opened.report.add("id-out-of-range", CONFIG, what, remedy)


def _eos_ids(raw: dict[str, Any]) -> list[Any]:
    value = raw.get("eos_token_id")
    return value if isinstance(value, list) else [value]


def _ids(ids: set[int]) -> str:
    return "[" + listed([str(each) for each in sorted(ids)], most=8) + "]" if ids else "missing"
