"""Facts about a release -> the model card: YAML front matter and Markdown, with a list of unmeasured properties."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from puna import __version__
from puna.evaluation.release.facts import (
    MODELS,
    Facts,
    base_of,
    data_rows,
    hub_origin,
    name_of,
    receipt_rows,
    settings_of,
    tree_lines,
)
from puna.evaluation.release.terms import applying, walk
from puna.evaluation.scores import OVERALL, ScoreTable
from puna.model.quantization.scheme import describe_schemes
from puna.pipeline.artifacts.licence import OWN

TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{name}"
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
messages = [{{"role": "user", "content": "Hello"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
"""


def model_card(facts: Facts) -> str:
    """Return README.md of a release."""
    badges = [f"**{badge}**" for badge in facts.badges]
    sections = [
        _front_matter(facts),
        f"# {facts.name}",
        *badges,
        *([facts.description] if facts.description else []),
        _what_it_is(facts),
        *_exceptions(facts),
        "## How to run it",
        _how_to_run(facts),
        "## Decision",
        f"{_code(facts.decision)} The page decision.md beside this card gives the reasons.",
        "## Scores",
        *_scores(facts.scores),
        *(["## General suite", *_scores(facts.general)] if facts.general else []),
        "## Receipts",
        *_receipts(facts),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(facts)),
        "## Lineage",
        *_lineage(facts),
        "## Data",
        *_data(facts),
        "## Training settings",
        *_settings(facts),
        "## Licence",
        *_licence(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: Facts) -> str:
    """Render the front matter for the Hugging Face hub; a licence unknown to the hub is "other"."""
    governing = facts.governing
    is_own = governing.id == OWN
    values: dict[str, Any] = {
        "license": "other" if is_own else governing.id,
        "license_name": "proprietary" if is_own else "",
        "license_link": "LICENSE" if is_own or governing.needs_text else "",
        "base_model": facts.base_model,
        "language": facts.languages,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["puna", "llama", *(["compressed-tensors"] if facts.checkpoint.is_quantized else [])],
        "datasets": facts.datasets,
    }
    # JSON strings and lists are valid YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def _what_it_is(facts: Facts) -> str:
    config, base = facts.checkpoint.config, base_of(facts.tree)
    commit = hub_origin(base).commit if base else ""
    origin = f"made from `{facts.base_model or name_of(base['path'])}`" if base else "trained from scratch"
    origin += f" at commit `{commit}`" if commit else ""
    dtype = str(facts.checkpoint.dtype).removeprefix("torch.")
    weights = f"weights in {describe_schemes(facts.checkpoint.schemes) or dtype}"
    languages = f" Meant for: {', '.join(facts.languages)}." if facts.languages else ""
    author = f" By {facts.author}." if facts.author else ""
    return (
        f"A language model of the Llama architecture, {origin}: {config.num_parameters:,} parameters, {weights}, "
        f"context {config.max_context:,} tokens. Written by Puna {__version__}.{languages}{author}"
    )


def _exceptions(facts: Facts) -> list[str]:
    if not facts.exceptions:
        return []
    return [
        "## Exceptions",
        "The publisher of this release allowed these exceptions:\n\n"
        + "\n".join(f"- {line}" for line in facts.exceptions),
    ]


def _how_to_run(facts: Facts) -> str:
    extra = (
        "With `compressed-tensors` installed, for the quantized weights:" if facts.checkpoint.is_quantized else "Or:"
    )
    code = TRANSFORMERS.format(name=facts.name)
    return (
        f"    puna chat {facts.name}\n    puna serve {facts.name}      # OpenAI-compatible API\n\n"
        f"{extra}\n\n```python\n{code}```"
    )


def _scores(scores: ScoreTable | None) -> Iterator[str]:
    if scores is None:
        yield "None: the quality of the answers was not measured."
        return
    overall, evaluation = scores.slices[OVERALL], scores.evaluation
    yield (
        f"{overall['n']:,} questions in {overall['groups']:,} groups, from {', '.join(map(_code, evaluation.tasks))}, "
        f"at temperature {evaluation.temperature:g}. This model is {_code(scores.name)}. Intervals are 95 %."
    )
    rows: list[list[str]] = []
    for name, entries in evaluation.checkpoints.items():
        difference = scores.against(name)
        points = "" if difference is None else "{:+.1f} ({:+.1f}, {:+.1f})".format(*(100 * x for x in difference))
        entry = entries[OVERALL]
        rows.append([f"**{name}**" if name == scores.name else name, f"{entry['n']:,}", _interval(entry), points])
    yield _table(["checkpoint", "n", "score %", f"lead of {scores.name}"], rows)
    kinds = {name: entry for name, entry in scores.slices.items() if name != OVERALL}
    if kinds:
        rows = [[name, f"{entry['n']:,}", _interval(entry)] for name, entry in kinds.items()]
        yield _table(["of which", "n", "score %"], rows)


def _receipts(facts: Facts) -> list[str]:
    if not facts.receipts:
        return ["None: no step made a measured claim."]
    marked = {"yes": "yes", "no": "**no**"}
    rows = [[_code(step), *columns, marked[held]] for step, *columns, held in receipt_rows(facts)]
    return ["Claims of the steps, and the measurements.", _table(["step", "claim", "value", "limit", "held"], rows)]


def _limits(facts: Facts) -> Iterator[str]:
    if facts.scores:
        num_questions = facts.scores.slices[OVERALL]["n"]
        yield f"Measured: the {num_questions:,} questions above. Other questions may give worse answers."
    if not facts.languages:
        yield "The intended languages were not stated."
    yield "Not measured here: safety, bias, truth outside the questions, and languages other than the questions'."
    yield "The model can state falsehoods with confidence. Check an answer before it can do harm."
    yield from (f"The receipt {r.claim} of {_code(of)} does not hold." for of, r in facts.receipts if not r.held)
    if facts.not_held:
        yield f"Changed or missing since use: {', '.join(map(_code, facts.not_held))}."


def _lineage(facts: Facts) -> list[str]:
    tree = "\n".join(tree_lines(facts.tree))
    return ["All inputs of the model; the numbers are the first digits of SHA-256 hashes.", f"```text\n{tree}\n```"]


def _data(facts: Facts) -> list[str]:
    rows = [
        [_code(name), *columns, ", ".join(map(_code, filter(None, readers.split(", ")))), _code(key)]
        for name, *columns, readers, key in data_rows(facts.tree)
    ]
    if not rows:
        return ["The lineage shows no training data: Puna does not know the earlier training data of the weights."]
    base = base_of(facts.tree)
    before = [f"What {_code(name_of(base['path']))} was trained on earlier is not known to Puna."] if base else []
    titles = ["dataset", "documents", "conversations", "licences", "read by (as)", "hash"]
    return [*before, _table(titles, rows)]


def _settings(facts: Facts) -> list[str]:
    lines: dict[str, None] = {}
    for node, _, _ in walk(facts.tree):
        if node["kind"] in MODELS and "stage" in node:  # a missing artifact has no stage
            settings = ", ".join(
                f"{key} = {json.dumps(value)}" for key, value in settings_of(Path(node["path"])).items()
            )
            lines[f"- {_code(name_of(node['path']))} ({node['stage']}): {settings}"] = None
    return ["\n".join(lines)] if lines else ["The lineage shows none."]


def _licence(facts: Facts) -> Iterator[str]:
    governing = facts.governing
    link = f" ({governing.url})" if governing.url else ""
    if governing.id == OWN:
        yield "No licence has been given: all rights are reserved."
    else:
        yield f"Released under the {governing.title}{link}."
    yield f"With it: {', '.join(map(_code, facts.texts))}. Anyone who passes the model on must pass these files on."
    for each in applying(facts.inherited):
        if each.duties:
            policy = [f"The policy: {each.policy_url}"] if each.policy_url else []
            duties = "\n".join(f"- {duty}" for duty in (*each.duties, *policy))
            yield f"Inherited duties, {each.title}:\n\n{duties}"
    if facts.credits:
        yield "Credits:\n\n" + "\n".join(f"- {line}" for line in facts.credits)
    if any(each.needs_credit for each in applying(facts.inherited)) and not facts.credits:
        yield "These licences require credits to authors, and the publisher stated none."
    yield "This list comes from the manifests of the lineage. It is no legal advice."


def _interval(entry: dict[str, float]) -> str:
    return "{:.1f} ({:.1f}, {:.1f})".format(*(100 * entry[key] for key in ("score", "low", "high")))


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(columns)}", *lines[1:]])
