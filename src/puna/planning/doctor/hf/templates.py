"""Chat templates of a directory -> the template that transformers uses, and findings about differences."""

from typing import Any

from puna.formats.checkpoint.safe_files import read_json
from puna.formats.tokenizer.beside import role_text
from puna.pipeline.errors import TokenizerError
from puna.planning.doctor.hf.opened import SPECIALS_MAP, TOKENIZER_CONFIG, Opened, find_safely
from puna.planning.doctor.template import MAX_TEMPLATE, check_template

JINJA, OLD_JSON = "chat_template.jinja", "chat_template.json"


def find_templates(opened: Opened) -> dict[str, Any]:
    """Return chat templates by file, in the order of precedence in transformers, and set `opened.template`."""
    templates: dict[str, Any] = {}
    report = opened.report
    with report.attempt("file-unreadable", JINJA):
        if file := find_safely(opened.path, JINJA):
            with file.open("rb") as stream:
                templates[JINJA] = stream.read(MAX_TEMPLATE * 4 + 1).decode("utf-8", "replace")
    with report.attempt("file-unreadable", OLD_JSON):
        if file := find_safely(opened.path, OLD_JSON):
            templates[OLD_JSON] = read_json(file).get("chat_template")
    inside = opened.json[TOKENIZER_CONFIG].get("chat_template")
    if isinstance(inside, list):  # several named templates: chats use "default"
        named = {item.get("name"): item.get("template") for item in inside if isinstance(item, dict)}
        inside = named.get("default", next(iter(named.values()), None))
    templates |= {TOKENIZER_CONFIG: inside}
    templates = {name: template for name, template in templates.items() if template is not None}
    opened.template = next((template for template in templates.values() if isinstance(template, str)), None)
    return templates


def check_templates(opened: Opened, templates: dict[str, Any]) -> None:
    """Report differences between templates, and between the first template and Llama 3.1's format."""
    report = opened.report
    if not templates:
        report.facts["chat template"] = "none; a base model"
        return
    where, template = next(iter(templates.items()))
    others = [name for name, other in templates.items() if other != template]
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
        return  # Missing special tokens are reported already, and ChatFormat needs all of them.
