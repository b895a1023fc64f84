"""Grammars in the engine: a random model, which is an adversary, can say nothing but sentences of them."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import llama_models.llama3 as meta
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from puna.formats.tokenizer import Tokenizer
from puna.inference.engine.grammar import check
from puna.inference.engine.grammar.grammar import Grammar, GrammarCompiler, json_grammar, lark_grammar, regex_grammar
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import Completion
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.errors import RequestError
from puna.testing.tiny_checkpoint import random_llama, tokenizer

PROMPT = [40, 41, 42]
ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "minLength": 1, "maxLength": 6},
        "number": {"type": "integer", "minimum": 1, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["old", "new", "große"]}, "minItems": 1, "maxItems": 3},
        "kind": {"anyOf": [{"const": None}, {"type": "boolean"}]},
        "more": {"$ref": "#/$defs/point"},
    },
    "required": ["street", "number", "tags", "kind"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
TREE = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["size"],
    "additionalProperties": False,
}
DATED = {"type": "array", "prefixItems": [{"type": "string", "format": "date"}, {"type": "boolean"}], "items": False}
SUMS = 'start: sum\nsum: product | sum "+" product\nproduct: ITEM | "(" sum ")"\nITEM: /[0-9]{1,2}/'


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer(), tokenizer().stop_ids)


def compiled(text: str) -> Grammar:
    return compiler().compile(text)


@cache
def sampler() -> LocalSampler:
    return LocalSampler(random_llama(), tokenizer(), options=EngineOptions(max_batch=8))


def said(text: str, *, seeds: range = range(6), **settings: Any) -> list[Completion]:
    settings = {"max_tokens": 300, "temperature": 1.0, "stop_ids": tokenizer().stop_ids} | settings
    params = [SamplingParams(**settings, seed=seed, grammar=compiled(text)) for seed in seeds]
    return sampler().complete([PROMPT] * len(params), params)


@pytest.mark.parametrize("schema", [ADDRESS, TREE, DATED], ids=["address", "tree", "dated"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_every_answer_to_a_schema_is_valid(schema, temperature):
    # Of the tree some answers do not end in time: no seed is chosen, so those are left out.
    done = [each for each in said(json_grammar(schema), temperature=temperature) if each.finish_reason == "stop"]
    assert done or schema is TREE
    for each in done:
        jsonschema.validate(json.loads(each.text), schema, format_checker=jsonschema.FormatChecker())
        assert (
            each.text == json.dumps(json.loads(each.text), ensure_ascii=False) or "\\" in each.text or "." in each.text
        )


def bounded_schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaves = st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]$"},
            {"type": "integer", "minimum": -20, "maximum": 20},
            {"enum": ["größer", 3, None, [1]]},
        ]
    )

    def grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.sampled_from(["a", "b c", 'q"', "größe", "name"])
        objects = st.dictionaries(names, inner, max_size=3).flatmap(
            lambda found: (
                st.lists(st.sampled_from(sorted(found)), unique=True).map(
                    lambda required: {
                        "type": "object",
                        "properties": found,
                        "required": required,
                        "additionalProperties": False,
                    }
                )
                if found
                else st.just({"type": "object", "additionalProperties": False})
            )
        )
        arrays = st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner)
        return objects | arrays | st.lists(inner, min_size=1, max_size=2).map(lambda found: {"anyOf": found})

    return st.recursive(leaves, grown, max_leaves=5)


@given(bounded_schemas(), st.integers(0, 99))
def test_any_bounded_schema_is_held_to(schema, seed):
    grammar = compiler().compile(json_grammar(schema))
    params = SamplingParams(300, 1.5, seed=seed, grammar=grammar, stop_ids=tokenizer().stop_ids)
    (done,) = sampler().complete([PROMPT], params)
    assert done.finish_reason == "stop"
    jsonschema.validate(json.loads(done.text), schema)


@pytest.mark.parametrize("regex", [r"[a-c]{2,5}-[0-9]{3}", r"(ja|nein|vielleicht größer)", r'a/b"[x-z]?', r"\p{Lu}{2}"])
def test_every_answer_to_a_regex_matches_it(regex):
    pattern = regex.replace(r"\p{Lu}", r"[^\W\d_]")
    for done in said(regex_grammar(regex)):
        assert done.finish_reason == "stop" and re.fullmatch(pattern, done.text), done.text


def test_every_answer_to_a_lark_grammar_is_a_sentence_of_it():
    ended = [done.text for done in said(lark_grammar(SUMS), seeds=range(12)) if done.finish_reason == "stop"]
    assert len(ended) > 3
    for text in ended:
        while (shorter := re.sub(r"\(?\b\d{1,2}(\+\d{1,2})*\)", "7", text)) != text:
            text = shorter
        assert re.fullmatch(r"\d{1,2}(\+\d{1,2})*", text), text


def test_an_end_token_is_admitted_only_where_a_sentence_may_end():
    for done in said(regex_grammar("[ab]{3,}"), temperature=2.0):
        if done.finish_reason == "stop":
            assert done.ids[-1] in tokenizer().stop_ids and len(done.text) >= 3
    (done,) = said(regex_grammar("abc"), seeds=range(1), stop_ids=())
    assert (done.text, done.finish_reason) == ("abc", "stop"), "the end of a grammar ends the answer by itself"


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_jumping_ahead_gives_the_same_tokens_as_asking_for_each(temperature):
    schema = ADDRESS | {
        "properties": {f"a long name, to be forced, of {name}": s for name, s in ADDRESS["properties"].items()}
    }
    schema["required"] = list(schema["properties"])
    text = json_grammar(schema)
    # With log-probabilities the model is asked about every token.
    each, jumped = said(text, temperature=temperature, logprobs=0), said(text, temperature=temperature)
    assert [done.ids for done in each] == [done.ids for done in jumped]
    assert [done.text for done in each] == [done.text for done in jumped]
    params = SamplingParams(300, temperature, seed=0, grammar=compiled(text), stop_ids=tokenizer().stop_ids)
    chunks = list(sampler().stream(PROMPT, params))
    assert [token for chunk in chunks for token in chunk.ids] == jumped[0].ids
    assert len(chunks) < len(jumped[0].ids) / 2


def test_a_jump_stops_at_a_stop_string_and_at_max_tokens():
    text = regex_grammar("the quick brown fox jumps over [0-9]+")
    whole = said(text, seeds=range(1), max_tokens=9)[0]
    assert whole.finish_reason == "length" and len(whole.ids) == 9
    cut = said(text, seeds=range(1), stop_strings=("own",))[0]
    assert (cut.text, cut.finish_reason) == ("the quick br", "stop")


def test_constrained_and_free_requests_do_not_change_one_another():
    forms = [json_grammar(ADDRESS), regex_grammar("[a-z]{1,30}"), None, json_grammar(TREE), None]
    grammars = [compiled(form) if form else None for form in forms]
    params = [SamplingParams(60, 1.0, seed=at, grammar=grammar) for at, grammar in enumerate(grammars)]
    alone = [sampler().complete([PROMPT], each)[0].ids for each in params]
    assert [done.ids for done in sampler().complete([PROMPT] * 5, params)] == alone


def test_a_grammar_that_turns_out_too_complex_ends_its_request_alone():
    wide = {"type": "object", "properties": {f"p{at}": {"type": "boolean"} for at in range(900)}}
    with pytest.raises(RequestError, match="row"):
        compiled(json_grammar(wide))
    wide = {"type": "array", "prefixItems": [{"type": "string", "minLength": 40, "maxLength": 40}, wide], "minItems": 2}
    late = SamplingParams(900, grammar=compiled(json_grammar(wide)))
    params = [SamplingParams(20, seed=1), late, SamplingParams(20)]
    free, failed, also_free = sampler().complete([PROMPT] * 3, params)
    assert failed.finish_reason == "error" and failed.error.startswith(
        "RequestError: a grammar that cannot be followed"
    )
    assert [free.ids, also_free.ids] == [sampler().complete([PROMPT], params[at])[0].ids for at in (0, 2)]


def test_log_probabilities_stay_those_of_the_model():
    (done,) = said(regex_grammar("[0-9]{5}"), seeds=range(1), logprobs=2)
    (free,) = sampler().complete([[*PROMPT, *done.ids]], SamplingParams(0, logprobs=2, echo_logprobs=True))
    for entry, expected in zip(done.logprobs, free.prompt_logprobs[len(PROMPT) :], strict=True):
        assert expected is not None and entry.logprob == pytest.approx(expected.logprob, abs=1e-4)


@given(st.text(min_size=1, max_size=40))
@example("the quick brown fox 🙂 größer")
@example("<|eot_id|>")
def test_what_is_forced_is_spelled_as_the_tokenizer_spells_it(text):
    matcher = compiler().compile(lark_grammar(f"start: {json.dumps(text)}")).matcher()
    forced = matcher.forced_ids()
    assert tokenizer().encode(text)[: len(forced)] == forced
    for token in tokenizer().encode(text):
        assert matcher.admitted(tokenizer().vocab_size)[token] == 0
        matcher.accept(token)
    assert matcher.is_over


def test_a_special_token_is_admitted_by_its_name_only():
    for name, token in tokenizer().special_ids.items():
        matcher = compiler().compile(lark_grammar(f"start: <|{name}|> /[a-z]+/")).matcher()
        assert (matcher.admitted(tokenizer().vocab_size) == 0).nonzero()[0].tolist() == [token]
    spelled = compiler().compile(lark_grammar('start: "<|eot_id|>"')).matcher().admitted(tokenizer().vocab_size)
    assert spelled[tokenizer().special("eot_id")] != 0


def test_a_model_with_more_rows_than_the_tokenizer_has_ids_is_never_sampled_there():
    admitted = compiled(regex_grammar(".")).matcher().admitted(tokenizer().vocab_size + 7)
    assert (admitted[-7:] != 0).all() and (admitted == 0).any()


@pytest.mark.slow
def test_llamas_own_tokenizer_is_spelled_alike():
    real = Tokenizer.load(Path(meta.__file__).with_name("tokenizer.model"))
    of_real = GrammarCompiler(real, real.stop_ids)
    for text in ("The parcel 62342 is on its way.", '{"type": "function", "name": "find"}', "größer 🙂 中文\n\n  x"):
        matcher = of_real.compile(lark_grammar(f"start: {json.dumps(text)}")).matcher()
        assert matcher.forced_ids() == real.encode(text)


BROKEN = {
    "no regex": regex_grammar("(a"),
    "look-around": regex_grammar("(?=a)b"),
    "no Lark": lark_grammar("start: ("),
    "no start": lark_grammar('other: "a"'),
    "an unknown token": lark_grammar("start: <|no_such_token|>"),
    "no type": json_grammar({"type": "strange"}),
    "nothing is valid": json_grammar({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "a schema elsewhere": json_grammar({"$ref": "https://example.com/schema.json"}),
    "a schema in a file": json_grammar({"$ref": "file:///etc/passwd"}),
    "an endless schema": json_grammar({"$ref": "#"}),
    "an unknown format": json_grammar({"type": "string", "format": "secret"}),
    "a keyword that cannot be held": json_grammar({"type": "array", "uniqueItems": True}),
    "deep rules": lark_grammar(
        "start: a0\n" + "".join(f"a{n}: a{n + 1} | a{n + 1} a{n + 1}\n" for n in range(3000)) + 'a3000: "x"'
    ),
    "too long": regex_grammar("a" * 200_000),
    "too many properties": json_grammar({"type": "object", "properties": {f"p{at}": {} for at in range(20_000)}}),
    "exponential": json_grammar(
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {"maxLength": j}}} for j in range(3)]} for i in range(14)]}
    ),
    "a hard number": json_grammar({"type": "integer", "multipleOf": 99_999_989, "minimum": 1, "maximum": 10**18}),
    "a hard regex": lark_grammar("start: X\nX: " + " & ".join(f"~/(?s:.*)a[ab]{{{n}}}(?s:.*)/" for n in range(600))),
}


ENDLESS = json_grammar({"allOf": [{"type": "string", "pattern": f"(a|b|c)*a(a|b){{{n}}}c"} for n in range(5, 25)]})


def test_a_grammar_that_would_compile_for_ever_is_given_up_and_the_next_is_compiled(monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.3)
    hasty = GrammarCompiler(tokenizer(), tokenizer().stop_ids)
    with pytest.raises(RequestError, match="seconds to compile"):
        hasty.compile(ENDLESS)
    assert hasty.compile(regex_grammar("a")).matcher().forced_ids() == tokenizer().encode("a")


@pytest.mark.parametrize("name", BROKEN)
def test_a_grammar_that_cannot_be_followed_is_refused(name):
    with pytest.raises(RequestError) as caught:
        compiler().compile(BROKEN[name], param="response_format")
    assert caught.value.param == "response_format" and len(str(caught.value)) < 500
