"""A JSON schema, a regex or a Lark grammar -> which ids may come next, and which must. The parser is llguidance's.

Compiled for a tokenizer and one request, which may have several answers. Does not decide what a grammar is for: tool
calls are spelled by chat/call_grammar.py. What compiling may cost is found out by check.py.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from puna.formats.tokenizer import Tokenizer
from puna.inference.engine.grammar.check import GrammarCheck
from puna.inference.engine.grammar.schema.fit import FittedSchema, SchemaFitter
from puna.pipeline.errors import ConfigError, RequestError, TokenizerError

if TYPE_CHECKING:
    import llguidance

MAX_GRAMMAR_CHARS = 100_000
MAX_REASON_CHARS = 300
REHEARSED_TOKENS = 8
MAX_REMEMBERED = 4096
# One line with one space behind a comma or a colon, as json.dumps writes it and the chat format teaches it: with free
# space a weak model can write blanks for ever, and hardly a token is ever certain beforehand.
JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What a step may cost, in llguidance's units: about 7 ms for the lexer, 1 ms for the parser, 40 MB for its states.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


def json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of a JSON schema that GrammarCompiler.fit returned, or that llguidance holds as it is."""
    return _grammars({"json_schema": with_layout(schema)})


def regex_grammar(regex: str) -> str:
    """Return the grammar of a regular expression in the syntax of Rust's regex crate, which matches the whole text."""
    return _library().LLMatcher.grammar_from_regex(regex)


def lark_grammar(lark: str, *, answer: str = "") -> str:
    """Return a grammar in llguidance's variant of Lark; `@answer` in it is another of these grammars."""
    named = [{"name": "answer"} | json.loads(answer)["grammars"][0]] if answer else []
    return _grammars({"lark_grammar": lark}, *named)


def with_layout(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with how its JSON is laid out; what it says of this itself stays."""
    own = schema.get("x-guidance")
    return {**schema, "x-guidance": JSON_LAYOUT | own if isinstance(own, dict) else JSON_LAYOUT}


class GrammarCompiler:
    """Compiles for one tokenizer, in any thread; a sentence of a grammar may be followed by any of `stop_ids`."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()
        self._check = GrammarCheck(LIMITS)
        self._passed: set[bytes] = set()
        self._fitter = SchemaFitter(lambda schema: self._check.problem(json_grammar(schema)))

    def fit(self, schema: Any, *, is_strict: bool, place: str) -> FittedSchema:
        """Return what a grammar can hold of a JSON schema; RequestError naming `place` where the rest must be held."""
        return self._fitter.fit(schema, is_strict=is_strict, place=place)

    def compile(
        self, grammar: str, *, param: str = "grammar", notes: Sequence[str] = (), is_sound: bool = False
    ) -> "Grammar":
        """Compile a grammar; RequestError naming `param` for one that is wrong, too large or admits nothing.

        `is_sound` leaves out the checks: for a grammar that another process has compiled already.
        """
        if len(grammar) > MAX_GRAMMAR_CHARS:
            given, expected = f"a grammar of {len(grammar):,} characters", f"at most {MAX_GRAMMAR_CHARS:,}"
            raise RequestError(given, expected=expected, param=param)
        library = _library()
        if not is_sound:
            self._pass(grammar, param)
        with self._lock:
            if self._vocabulary is None:
                spelled = _SpelledTokens(self._tokenizer, self._stop_ids)
                self._vocabulary = library.LLTokenizer(spelled, eos_token=self._stop_ids)
        limits = library.LLParserLimits(**LIMITS)
        start = library.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        compiled = Grammar(start, param, grammar, notes=notes)
        if not is_sound:
            self._rehearse(compiled.matcher())
        return compiled

    def _pass(self, grammar: str, param: str) -> None:
        """Let a grammar be checked, unless it is known to be sound."""
        key = hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).digest()
        if key in self._passed:
            return
        if problem := self._check.problem(grammar):
            raise _unfit(problem, param)
        with self._lock:
            if len(self._passed) >= MAX_REMEMBERED:
                self._passed.clear()
            self._passed.add(key)

    def _rehearse(self, matcher: "Matcher") -> None:
        """Take the first steps, which cost the most, so that what they find too complex is refused here."""
        for _ in range(REHEARSED_TOKENS):
            admitted = np.flatnonzero(matcher.admitted(self._tokenizer.vocab_size) == 0)
            if matcher.is_over or not len(admitted) or admitted[0] in self._stop_ids:
                return
            matcher.accept(int(admitted[0]))


class Grammar:
    """A compiled grammar, where every answer to one request begins: after the ids `begun`. `text` is its source.

    `notes` say what of the client's schemas the grammar does not hold.

    NOTE: what its matchers learn of it they share, and it is bounded; kept for ever it would be used up.
    """

    def __init__(
        self,
        start: "llguidance.LLMatcher",
        param: str,
        text: str,
        begun: Sequence[int] = (),
        *,
        notes: Sequence[str] = (),
    ):
        self._start, self.param, self.text = start, param, text
        self.begun, self.notes = tuple(begun), tuple(notes)

    def matcher(self) -> "Matcher":
        return Matcher(self._start.deep_copy(), self.param)

    def after(self, ids: Sequence[int]) -> "Grammar":
        """Return the grammar of the rest of an answer that begins with `ids`.

        Raises:
            RequestError: If no answer begins so, and if nothing can follow.
        """
        start = self._start.deep_copy()
        if any(not start.consume_token(token) for token in ids):
            given = "the message to be continued begins no answer of the form that is asked for"
            raise RequestError(given, expected=f"the beginning of an answer that {self.param} admits", param="messages")
        if start.is_stopped():
            raise RequestError("the message to be continued is complete", expected="a part of it", param="messages")
        return Grammar(start, self.param, self.text, (*self.begun, *ids), notes=self.notes)


class Matcher:
    """One request's place in its grammar."""

    def __init__(self, place: "llguidance.LLMatcher", param: str):
        self._place, self._param = place, param

    @property
    def is_over(self) -> bool:
        """Whether the text is a sentence that nothing can follow."""
        return self._place.is_stopped()

    def admitted(self, vocab_size: int) -> np.ndarray:
        """Return what to add to the logits: 0 for an id that may come next, -inf for the others."""
        bits = np.frombuffer(self._place.compute_bitmask(), np.uint8)
        self._check()
        added = _added_by_byte().take(bits, axis=0).reshape(-1)[:vocab_size]
        missing = vocab_size - len(added)
        return np.pad(added, (0, missing), constant_values=-np.inf) if missing else added

    def accept(self, token: int) -> None:
        """Move on by an id."""
        self._place.consume_token(token)
        self._check()

    def forced_ids(self) -> list[int]:
        """Return the ids that must come next, as the tokenizer spells the only text that may; often none."""
        forced = self._place.compute_ff_tokens()
        self._check()
        return forced

    def _check(self) -> None:
        if self._place.is_error():
            raise _unfit(self._place.get_error(), self._param)


class _SpelledTokens:
    """A tokenizer as llguidance asks for it; the names are its own."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        self.eos_token_id = stop_ids[0]
        self.tokens = [_spelling(tokenizer, index) for index in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids.values())
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _unfit(reason: str, param: str) -> RequestError:
    shown = " ".join(reason.split())[:MAX_REASON_CHARS]
    return RequestError(f"a grammar that cannot be followed ({shown})", param=param)


def _spelling(tokenizer: Tokenizer, index: int) -> bytes:
    """Return the bytes of an id; none for one that the tokenizer has left out."""
    try:
        return tokenizer.decode_bytes([index])
    except TokenizerError:
        return b""


@cache
def _added_by_byte() -> np.ndarray:
    """Return for each byte of a bit mask what its 8 ids are given: a table is 20 times as fast as a masked fill."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits, np.float32(0), np.float32(-np.inf))


def _grammars(*grammars: dict[str, Any]) -> str:
    return json.dumps({"grammars": list(grammars)}, ensure_ascii=False)


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise ConfigError("grammars need llguidance", hint="pip install 'puna[grammar]'") from None
    return llguidance
