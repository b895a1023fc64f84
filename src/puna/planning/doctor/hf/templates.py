"""Where a directory keeps its chat template -> the one that transformers uses, and findings about the others."""

from typing import Any

from puna.formats.checkpoint.safe_files import read_json
from puna.pipeline.errors import TokenizerError
from puna.planning.doctor.hf.opened import SPECIALS_MAP, TOKENIZER_CONFIG, Opened, find_safely, role_text
from puna.planning.doctor.template import MAX_TEMPLATE, check_template

JINJA, OLD_JSON = "chat_template.jinja", "chat_template.json"


def find_templates(opened: Opened) -> dict[str, Any]:
    """Return the template of each place that has one, the place that wins first; put the winner into `opened`."""
    found: dict[str, Any] = {}
    report = opened.report
    with report.attempt("file-unreadable", JINJA):
        if file := find_safely(opened.path, JINJA):
            with file.open("rb") as stream:
                found[JINJA] = stream.read(MAX_TEMPLATE * 4 + 1).decode("utf-8", "replace")
    with report.attempt("file-unreadable", OLD_JSON):
        if file := find_safely(opened.path, OLD_JSON):
            found[OLD_JSON] = read_json(file).get("chat_template")
    inside = opened.json[TOKENIZER_CONFIG].get("chat_template")
    if isinstance(inside, list):  # several by name: the one named default is what a chat uses
        named = {each.get("name"): each.get("template") for each in inside if isinstance(each, dict)}
        inside = named.get("default", next(iter(named.values()), None))
    found |= {TOKENIZER_CONFIG: inside}
    found = {name: template for name, template in found.items() if template is not None}
    opened.template = next((template for template in found.values() if isinstance(template, str)), None)
    return found


def check_templates(opened: Opened, found: dict[str, Any]) -> None:
    """Report templates that disagree, and how the one that wins differs from Llama 3.1's format."""
    report = opened.report
    if not found:
        report.facts["chat template"] = "none; a base model"
        return
    where, template = next(iter(found.items()))
    others = [name for name, other in found.items() if other != template]
    if others:
        what = f"the template here is not the one in {', '.join(others)}; expected one template"
        report.add(
            "templates-disagree", where, what, "Remove all but one; older programs read tokenizer_config.json only"
        )
    if opened.tokenizer is None:
        return
    roles: dict[str, str] = {}
    for name in (SPECIALS_MAP, TOKENIZER_CONFIG):
        texts = {role: role_text(value) for role, value in opened.json[name].items() if role.endswith("_token")}
        roles |= {role: text for role, text in texts.items() if text is not None}
    try:
        check_template(template, opened.tokenizer, roles, where, report)
    except TokenizerError:
        return  # The special tokens that are missing have been reported; without them there is no format.
