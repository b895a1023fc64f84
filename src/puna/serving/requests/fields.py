"""Fields without effect in Puna -> a warning or an error.

Null fields are ignored. Errors: fields that would change the answer, and misspelled names. Other fields get a warning,
or an error with `--strict-fields`.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from puna.serving.errors import HttpError
from puna.serving.requests.checks import json_problem

FORM = "Give `response_format`."
TEXT_ONLY = "Puna reads and writes text only."
NO_SAMPLER = "Puna has no such sampling."
LAYOUT = "Puna's answers have OpenAI's layout only."
NO_TEMPLATE = "Puna renders conversations in the format of training: docs/reference/chat.md."


class Unless(NamedTuple):
    """Harmless values of an unsupported field, and advice for all other values."""

    values: tuple[Any, ...]
    advice: str


# Other programs' names of supported fields.
ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "random_seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "stop_sequences": "stop",
}

# Fields that would change the answer.
REFUSED = {
    "add_special_tokens": Unless((True,), "Give `prompt` as token ids."),
    "allowed_token_ids": Unless(([],), "Give `logit_bias` or `response_format`."),
    "audio": Unless((), TEXT_ONLY),
    "bad_words": Unless(([],), "Give `logit_bias`."),
    "best_of": Unless((1,), "Give `n`, and choose among the answers."),
    "cache_salt": Unless(("",), "Give each tenant a key: prefixes are never shared between keys."),
    "chat_template": Unless(("",), NO_TEMPLATE),
    "continue_final_message": Unless((False,), "Only /v1/chat/completions has messages."),
    "custom_logit_processor": Unless(("",), NO_SAMPLER),
    "do_sample": Unless((True,), "Give `temperature`."),
    "documents": Unless(([],), "Put the documents into a message."),
    "dry_multiplier": Unless((0,), NO_SAMPLER),
    "dynatemp_range": Unless((0,), NO_SAMPLER),
    "ebnf": Unless(("",), FORM),
    "early_stopping": Unless((False,), NO_SAMPLER),
    "encoder_repetition_penalty": Unless((1,), NO_SAMPLER),
    "epsilon_cutoff": Unless((0,), NO_SAMPLER),
    "eta_cutoff": Unless((0,), NO_SAMPLER),
    "format": Unless(("",), FORM),
    "function_call": Unless(("none", "auto"), "Give `tools` and `tool_choice`."),
    "functions": Unless(([],), "Give `tools`."),
    "grammar": Unless(("",), FORM),
    "guided_choice": Unless(([],), FORM),
    "guided_grammar": Unless(("",), FORM),
    "guided_json": Unless((), FORM),
    "guided_json_object": Unless((False,), FORM),
    "guided_regex": Unless(("",), FORM),
    "ignore_eos": Unless((False,), "An answer ends where the model ends it."),
    "images": Unless(([],), TEXT_ONLY),
    "include_stop_str_in_output": Unless((False,), "An answer ends before its stop string."),
    "instructions": Unless(("",), "Give a message of role system."),
    "json_schema": Unless((), FORM),
    "length_penalty": Unless((0, 1), NO_SAMPLER),
    "logits_processors": Unless(([],), NO_SAMPLER),
    "max_length": Unless((), "Give `max_tokens`, which counts new tokens only."),
    "messages": Unless(([],), "Only /v1/chat/completions has `messages`."),
    "min_new_tokens": Unless((0,), "An answer ends where the model ends it."),
    "min_tokens": Unless((0,), "An answer ends where the model ends it."),
    "mirostat": Unless((0,), NO_SAMPLER),
    "mirostat_mode": Unless((0,), NO_SAMPLER),
    "mm_processor_kwargs": Unless(({},), TEXT_ONLY),
    "modalities": Unless((["text"], []), TEXT_ONLY),
    "no_repeat_ngram_size": Unless((0,), NO_SAMPLER),
    "num_beams": Unless((1,), NO_SAMPLER),
    "num_return_sequences": Unless((1,), "Give `n`."),
    "penalty_alpha": Unless((0,), NO_SAMPLER),
    "prediction": Unless((), "Puna does not read predicted outputs."),
    "previous_response_id": Unless(("",), "Send the whole conversation."),
    "prompt": Unless(("", []), "Only /v1/completions has `prompt`."),
    "prompt_embeds": Unless((), TEXT_ONLY),
    "prompt_logprobs": Unless((), "Only /v1/completions has `prompt_logprobs`."),
    "regex": Unless(("",), FORM),
    "response_schema": Unless((), FORM),
    "return_full_text": Unless((False,), "Give `echo`."),
    "return_hidden_states": Unless((False,), LAYOUT),
    "return_token_ids": Unless((False,), LAYOUT),
    "return_tokens_as_token_ids": Unless((False,), LAYOUT),
    "skip_special_tokens": Unless((True,), "Special tokens are never text."),
    "smoothing_factor": Unless((0,), NO_SAMPLER),
    "stop_regex": Unless(("",), "Give `stop`."),
    "stop_token": Unless(("",), "Give `stop` or `stop_token_ids`."),
    "stop_tokens": Unless(([],), "Give `stop` or `stop_token_ids`."),
    "stop_words": Unless(([],), "Give `stop`."),
    "structural_tag": Unless((), FORM),
    "structured_outputs": Unless((), FORM),
    "suffix": Unless(("",), "Puna does not fill in the middle."),
    "system_prompt": Unless(("",), "Give a message of role system."),
    "system": Unless(("",), "Give a message of role system."),
    "temperature_last": Unless((False,), NO_SAMPLER),
    "template": Unless(("",), NO_TEMPLATE),
    "tfs_z": Unless((1,), NO_SAMPLER),
    "tools": Unless(([],), "Only /v1/chat/completions has `tools`."),
    "top_a": Unless((0,), NO_SAMPLER),
    "top_n_sigma": Unless((-1, 0), NO_SAMPLER),
    "truncate": Unless((), "Shorten the prompt before sending it."),
    "truncate_prompt_tokens": Unless((-1,), "Shorten the conversation before sending it."),
    "typical_p": Unless((0, 1), NO_SAMPLER),
    "use_beam_search": Unless((False,), NO_SAMPLER),
    "web_search_options": Unless((), "Give a tool, and run it on your side."),
    "xtc_probability": Unless((0,), NO_SAMPLER),
}

# The chat format always writes all special tokens.
CHAT_REFUSED = {"add_special_tokens": Unless((True, False), NO_TEMPLATE)}

# Arguments of Llama's own chat template that Puna takes as fields.
TEMPLATE_FIELDS = {
    "builtin_tools": "builtin_tools",
    "custom_tools": "tools",
    "date_string": "today",
    "documents": "messages",
    "environment": "environment",
    "tools": "tools",
    "add_generation_prompt": "add_generation_prompt",
    "continue_final_message": "continue_final_message",
}

# Values accepted by `--strict-fields`: labels of OpenAI's API, and values without effect.
STRICT_VALUES: dict[str, type | tuple[Any, ...]] = {
    "best_of": (1,),
    "metadata": dict,
    "modalities": (["text"],),
    "prompt_cache_key": str,
    "reasoning_effort": ("none",),
    "safety_identifier": str,
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "user": str,
    "verbosity": ("medium",),
}

# Fields of messages that repeat other fields.
REPEATED = {"index", "parsed", "parsed_arguments", "type"}
# Names of other programs' fields that come near "model" and "content".
NO_MISSPELLINGS = {"mode", "models", "context"}
NO_NAMES = "Llama's chat format has no place for names"
MIN_LIKENESS = 0.8
# Every unknown name is compared with all known names, and a body of 4 MiB could hold half a million names.
MAX_FIELDS = 256


class Sifted(NamedTuple):
    """Fields for the request's model, and warnings about the other fields."""

    fields: dict[str, Any]
    warnings: list[str]


def sift(
    data: Mapping[str, Any],
    model: type[BaseModel],
    spellings: Mapping[str, tuple[Any, Any, str]],
    *,
    is_strict: bool,
) -> Sifted:
    """Split a body into the fields of `model`, and warnings about other fields.

    Args:
        data: The body of a request.
        model: The request's model.
        spellings: Other programs' values, as {name: (value, meaning, words for the meaning)}.
        is_strict: Raise instead of warning, except for STRICT_VALUES.

    Raises:
        HttpError: Status 400 with the field's name, for an unsupported or misspelled field.

    Example:
        >>> class Request(BaseModel):
        ...     top_k: int
        >>> sift({"top_k": -1, "verbosity": "low"}, Request, {"top_k": (-1, 0, "no limit")}, is_strict=False)
        Sifted(fields={'top_k': 0}, warnings=['top_k: -1 is read as no limit', 'verbosity has no effect'])
    """
    fields: dict[str, Any] = {}
    warnings: list[str] = []
    if len(data) > MAX_FIELDS:
        raise HttpError(400, f"The body has {len(data):,} fields; expected at most {MAX_FIELDS}.")
    if data.get("do_sample") is False and not is_strict:
        # lm-evaluation-harness and others send transformers' word for the most likely tokens.
        data = {name: value for name, value in data.items() if name != "do_sample"} | {"temperature": 0}
        warnings.append("do_sample: False is read as temperature 0")
    for name, value in data.items():
        if problem := json_problem(value):
            raise HttpError(400, f"{shown(name)}: {problem}", param=name)
        known = name if is_strict else ALIASES.get(name, name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON does not tell 8.0 from 8.
        if value is None and (name not in model.model_fields or known in fields):
            continue
        if known not in model.model_fields:
            warnings.append(_judge(name, value, model, is_strict=is_strict))
            continue
        spelled = None if is_strict else spellings.get(known)
        if spelled and _is_same(value, spelled[0]):
            warnings.append(f"{name}: {value!a} is read as {spelled[2]}")
            value = spelled[1]
        if known == "stop" and isinstance(value, list) and "" in value and not is_strict:
            value = [text for text in value if text != ""]
            warnings.append(f"{name}: '' is read as no stop string")
        if known != name:
            if any(other not in (None, value) for other in (data.get(known), fields.get(known))):
                raise HttpError(400, f"{name} differs from {known}; give one of them.", param=name)
            warnings.append(f"{name} is read as {known}")
        fields[known] = value
    return Sifted(fields, warnings)


def _judge(name: str, value: Any, model: type[BaseModel], *, is_strict: bool) -> str:
    """Return the warning about an undeclared field, or raise HttpError."""
    if is_strict:
        if not _is_accepted_strictly(name, value):
            hint = _nearest(name, model) or "Puna would not act on it."
            raise HttpError(400, f"Unknown or unsupported field {shown(name)}. {hint}", param=name)
    elif unless := _unless(name, model):
        if not any(_is_same(value, harmless) for harmless in unless.values):
            raise HttpError(400, f"{name} would change the answer, and is not supported. {unless.advice}", param=name)
    elif isinstance(value, dict) and (fields := _fields_within(name, model)):
        for argument in (key for key in value if key in fields and value[key] is not None):
            place = f"{name}.{argument}"
            raise HttpError(400, f"{place}: give the field `{fields[argument]}`.", param=place)
    elif not _asks_nothing(value) and (hint := _nearest(name, model)):
        raise HttpError(400, f"Unknown field {shown(name)}. {hint}", param=name)
    return f"{shown(name)} has no effect"


def _unless(name: str, model: type[BaseModel]) -> Unless | None:
    in_chat = CHAT_REFUSED.get(name) if "messages" in model.model_fields else None
    return in_chat or REFUSED.get(name)


def _fields_within(name: str, model: type[BaseModel]) -> Mapping[str, str]:
    """Map settings within other programs' objects to fields of requests."""
    if name == "chat_template_kwargs":
        return TEMPLATE_FIELDS
    # Ollama's `options` hold sampling parameters among memory settings.
    return ALIASES | {field: field for field in model.model_fields} if name == "options" else {}


def judge_extras(model: BaseModel, place: str, seen: set[str], *, is_strict: bool) -> Iterator[str]:
    """Yield warnings about undeclared nested fields.

    Args:
        model: A part of the request.
        place: The part's place in the request, such as messages[0].
        seen: Names with a warning; a repeated name has a single warning, about the first place.
        is_strict: Raise for every non-empty field.

    Raises:
        HttpError: For a misspelled name, for media, and for more than MAX_FIELDS names.
    """
    for name, value in (model.model_extra or {}).items():
        if name in seen or name in REPEATED or _asks_nothing(value):
            continue
        where = f"{place}.{shown(name)}"
        seen.add(name)
        if len(seen) > MAX_FIELDS:
            raise HttpError(400, f"{where}: more than {MAX_FIELDS} unknown names of fields.", param=where)
        if name in ("audio", "images", "videos"):
            raise HttpError(400, f"{where} is not supported. {TEXT_ONLY}", param=where)
        hint = _nearest(name, type(model))
        if is_strict or hint:
            raise HttpError(400, f"Unknown field {where}. {hint or 'Puna would not act on it.'}", param=where)
        yield f"{where} has no effect" + (f": {NO_NAMES}" if name == "name" else "")
    for name in type(model).model_fields:
        value = getattr(model, name)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, BaseModel):
                below = f"{place}.{name}".lstrip(".") + (f"[{index}]" if isinstance(value, list) else "")
                yield from judge_extras(item, below, seen, is_strict=is_strict)


def shown(name: str) -> str:
    """Return a field's name for a message: identifiers unchanged, other names escaped and cut."""
    return name if name.isidentifier() and name.isascii() and len(name) <= 64 else ascii(name)[:64]


def _is_same(value: Any, other: Any) -> bool:
    """Compare JSON, where true is not 1."""
    return type(value) is type(other) and value == other


def _asks_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _is_accepted_strictly(name: str, value: Any) -> bool:
    accepted = STRICT_VALUES.get(name, ())
    if name == "metadata" and isinstance(value, dict):
        return all(isinstance(text, str) for text in value.values())
    if isinstance(accepted, type):
        return isinstance(value, accepted)
    return any(_is_same(value, other) for other in accepted)


def _nearest(name: str, model: type[BaseModel]) -> str:
    """Return "Did you mean 'x'?" for a misspelled field, otherwise "".

    A suggestion has the same number of words, or the same letters.
    """
    known = {_folded(field): field for field in model.model_fields}
    near = difflib.get_close_matches(_folded(name)[:64], known, cutoff=MIN_LIKENESS)
    if name in NO_MISSPELLINGS:
        return ""
    alike = (field for field in near if field == _folded(name) or _num_words(name) == _num_words(known[field]))
    best = next(alike, None)
    return f"Did you mean '{known[best]}'?" if best else ""


def _folded(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _num_words(name: str) -> int:
    return len(re.findall(r"[A-Z]?[^\W_A-Z]+|[A-Z]+", name))
