"""JSON schemas, regular expressions and Lark grammars -> token masks and forced tokens, by llguidance.

A grammar is compiled for a tokenizer and a request; a request may have several answers. chat/call_grammar.py writes the
grammars of tool calls. check.py guards against expensive grammars.
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
# One line with one space after commas and colons, as in json.dumps and the chat format. With free whitespace, a weak
# model can write blanks forever, and hardly any token is forced.
JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Limits of a step in llguidance's units: about 7 ms for the lexer, 1 ms for the parser, 40 MB for lexer states.
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
    """Return the grammar of a JSON schema by GrammarCompiler.fit, or of any schema within llguidance's support."""
    return _grammars({"json_schema": with_layout(schema)})


def regex_grammar(regex: str) -> str:
    """Return the grammar of a regular expression in the syntax of Rust's regex crate, matching whole texts."""
    return _library().LLMatcher.grammar_from_regex(regex)


def lark_grammar(lark: str, *, answer: str = "") -> str:
    """Return a grammar in llguidance's variant of Lark; the rule `@answer` refers to the grammar `answer`."""
    named = [{"name": "answer"} | json.loads(answer)["grammars"][0]] if answer else []
    return _grammars({"lark_grammar": lark}, *named)


def with_layout(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with the JSON layout; the schema's own layout wins."""
    own = schema.get("x-guidance")
    return {**schema, "x-guidance": JSON_LAYOUT | own if isinstance(own, dict) else JSON_LAYOUT}


class GrammarCompiler:
    """Compiles grammars for a tokenizer, in any thread; `stop_ids` may follow a complete sentence.

    Example:
        >>> compiler = GrammarCompiler(tokenizer, stop_ids=[tokenizer.special("eot_id")])
        >>> grammar = compiler.compile(regex_grammar("yes|no"))
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]):
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()
        self._check = GrammarCheck(LIMITS)
        self._passed: set[bytes] = set()
        self._fitter = SchemaFitter(lambda schema: self._check.problem(json_grammar(schema)))

    def fit(self, schema: Any, *, is_strict: bool, place: str) -> FittedSchema:
        """Return the enforceable part of a JSON schema; RequestError for an unsupported strict schema.

        `place` names the schema in errors and notes.
        """
        return self._fitter.fit(schema, is_strict=is_strict, place=place)

    def compile(
        self, grammar: str, *, param: str = "grammar", notes: Sequence[str] = (), is_sound: bool = False
    ) -> "Grammar":
        """Compile a grammar.

        Args:
            grammar: Grammar in llguidance's JSON format.
            param: Name of the request's field, for errors.
            notes: Unenforced keywords of the client's schemas.
            is_sound: Whether a separate process has already compiled the grammar; the checks are then left out.

        Raises:
            RequestError: The grammar is invalid, too large or empty.
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
        """Check a grammar in the child process, once per grammar."""
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
        """Take the first and most expensive steps, to refuse a too complex grammar before generation."""
        for _ in range(REHEARSED_TOKENS):
            admitted = np.flatnonzero(matcher.admitted(self._tokenizer.vocab_size) == 0)
            if matcher.is_over or not len(admitted) or admitted[0] in self._stop_ids:
                return
            matcher.accept(int(admitted[0]))


class Grammar:
    """A compiled grammar of a request, with `text` as source; answers start after the ids `begun`.

    `notes` list unenforced keywords of the client's schemas.

    NOTE: matchers share a bounded lexer cache, so a grammar must not outlive the request.

    Example: `GrammarCompiler`.
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
        """Return the grammar of the rest of an answer with the prefix `ids`.

        Raises:
            RequestError: No answer begins with `ids`, or `ids` are a complete answer.
        """
        start = self._start.deep_copy()
        if any(not start.consume_token(token) for token in ids):
            given = f"a message to be continued that does not match {self.param}"
            raise RequestError(given, expected=f"the beginning of an answer that {self.param} admits", param="messages")
        if start.is_stopped():
            raise RequestError("a complete message to be continued", expected="an incomplete answer", param="messages")
        return Grammar(start, self.param, self.text, (*self.begun, *ids), notes=self.notes)


class Matcher:
    """The parser state of an answer.

    Example:
        >>> matcher = grammar.matcher()
        >>> matcher.admitted(tokenizer.vocab_size).shape
        (530,)
    """

    def __init__(self, state: "llguidance.LLMatcher", param: str):
        self._state, self._param = state, param

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._state.is_stopped()

    def admitted(self, vocab_size: int) -> np.ndarray:
        """Return the logit mask: 0 for admitted ids, -inf for rejected ids."""
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        self._check()
        added = _added_by_byte().take(bits, axis=0).reshape(-1)[:vocab_size]
        missing = vocab_size - len(added)
        return np.pad(added, (0, missing), constant_values=-np.inf) if missing else added

    def accept(self, token: int) -> None:
        """Advance by a token."""
        self._state.consume_token(token)
        self._check()

    def forced_ids(self) -> list[int]:
        """Return forced ids: the tokenization of the only admitted text; often empty."""
        forced = self._state.compute_ff_tokens()
        self._check()
        return forced

    def _check(self) -> None:
        if self._state.is_error():
            raise _unfit(self._state.get_error(), self._param)


class _SpelledTokens:
    """The tokenizer interface of llguidance, with llguidance's names."""

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
    """Return the bytes of an id; b"" for unused ids."""
    try:
        return tokenizer.decode_bytes([index])
    except TokenizerError:
        return b""


@cache
def _added_by_byte() -> np.ndarray:
    """Return logit masks of 8 ids for all 256 byte values: a table lookup is 20 times as fast as a masked fill."""
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
