"""A server that scores given texts -> labels: by vLLM's `prompt_logprobs`, or by OpenAI's `echo` with `logprobs`.

The first says ids and is exact. The second says tokens as texts: what no single id of our tokenizer spells is left to
the tail. Whether the server reads texts as our tokenizer does is checked against what it says of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.completer.http import EndpointClient, RejectedError
from puna.pipeline.errors import ConfigError, DataError, TokenizerError
from puna.training.teacher.settings import TeacherEndpoint
from puna.training.teacher.teacher import Item, Label, Labelled, Piece, cut, labelled_row

# A character that a token holds only a part of.
BROKEN = "\ufffd"
ID_PREFIX = "token_id:"
# Tokens that a server may spell otherwise than we do, before it is taken for another tokenizer's.
TOLERATED = 0.02

Way = Callable[[Sequence[int]], "list[Label | None]"]


class ScoringTeacher:
    """Asks for each text, or each piece of `context` tokens of it, once."""

    def __init__(
        self, client: EndpointClient, settings: TeacherEndpoint, tokenizer: Tokenizer, top_k: int, context: int
    ):
        self._client, self._settings = client, settings
        self._tokenizer, self._top_k, self._context = tokenizer, top_k, context
        self._ids_of = _ids_of_texts(tokenizer)
        self._way: Way | None = None

    def label(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Labelled]:
        if self._way is None:
            self._way = self._find_way(next(iter(cut(0, items[0], self._context))))
        labelled: list[Labelled] = []
        for found in self._client.map(self._one, items):
            labelled.append(found)
            advance(1)
        return labelled

    def _one(self, item: Item) -> Labelled:
        assert self._way
        labels: list[Label] = []
        for piece in cut(0, item, self._context):
            found = self._way(piece.ids)
            labels += [self._require(found[at]) for at in piece.wanted]
        return Labelled(item.row, labelled_row(item.ids, item.mask, labels, top_k=self._top_k))

    def _require(self, label: Label | None) -> Label:
        if label is None or not label.entries:
            raise DataError(f"{self._settings.url} scores only some of a text's tokens", expected="all of them")
        return label

    def _find_way(self, piece: Piece) -> Way:
        """Try each way with one text; ConfigError with what the server said if there is none."""
        said: list[str] = []
        for way in (self._by_prompt_logprobs, self._by_echo_of_ids, self._by_echo):
            try:
                way(piece.ids)
                return way
            except RejectedError as error:
                said.append(str(error) if error.status != 200 else error.message)
        raise ConfigError(
            f"{self._settings.url} does not score texts ({said[0]})",
            expected=f"prompt_logprobs = {self._top_k}, or echo with logprobs, at /completions",
            hint="Lower top_k or raise the server's own limit (vLLM: --max-logprobs); a server that tells only what "
            "it generates can label its own answers: endpoint.answers = true",
        )

    def _by_prompt_logprobs(self, ids: Sequence[int]) -> "list[Label | None]":
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": self._top_k}
        choice = _first_choice(self._client.post("/completions", body))
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(ids):
            raise RejectedError(200, "an answer without prompt_logprobs")
        self._require_same_tokens(ids, [_spelled(row, token) for row, token in zip(rows, ids, strict=True)])
        return [self._read_ids(row, token) for row, token in zip(rows, ids, strict=True)]

    def _read_ids(self, row: Any, token: int) -> Label | None:
        if not isinstance(row, dict) or str(token) not in row:
            return None
        known = [(int(key), float(entry["logprob"])) for key, entry in row.items()]
        if max(known)[0] >= self._tokenizer.vocab_size:
            raise self._foreign(f"token id {max(known)[0]}")
        return Label(known, float(row[str(token)]["logprob"]))

    def _by_echo_of_ids(self, ids: Sequence[int]) -> "list[Label | None]":
        return self._echo(ids, {"return_tokens_as_token_ids": True})

    def _by_echo(self, ids: Sequence[int]) -> "list[Label | None]":
        return self._echo(ids, {})

    def _echo(self, ids: Sequence[int], more: dict[str, Any]) -> "list[Label | None]":
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": self._top_k, **more}
        told = _first_choice(self._client.post("/completions", body)).get("logprobs")
        names = ("tokens", "token_logprobs", "top_logprobs")
        found = [told.get(name) for name in names] if isinstance(told, dict) else []
        lists = [each[: len(ids)] for each in found if isinstance(each, list) and len(each) >= len(ids)]
        if len(lists) < len(names):
            raise RejectedError(200, "an answer without echoed logprobs")
        tokens, chosen, tops = lists
        self._require_same_tokens(ids, tokens)
        return [
            None if logprob is None else Label(self._known_entries(top, token, logprob), float(logprob))
            for token, logprob, top in zip(ids, chosen, tops, strict=True)
        ]

    def _known_entries(self, top: Any, token: int, logprob: float) -> list[tuple[int, float]]:
        found = {self._id_of(text): float(value) for text, value in (top or {}).items()}
        found.pop(None, None)
        return [(each, value) for each, value in ({token: logprob} | found).items() if each is not None]

    def _id_of(self, text: str) -> int | None:
        if text.startswith(ID_PREFIX) and text[len(ID_PREFIX) :].isdecimal():
            token = int(text[len(ID_PREFIX) :])
            if token >= self._tokenizer.vocab_size:
                raise self._foreign(f"token id {token}")
            return token
        return self._ids_of.get(text)

    def _require_same_tokens(self, ids: Sequence[int], spelled: Sequence[str | None]) -> None:
        """Compare a text's tokens with how the server spells them, where it spells them whole."""
        checked = [
            (token, text)
            for token, text in zip(ids, spelled, strict=True)
            if text and BROKEN not in text and not text.startswith("bytes:") and not self._tokenizer.is_special(token)
        ]
        strange = [
            (token, text)
            for token, text in checked
            if text != f"{ID_PREFIX}{token}" and text.strip() != self._tokenizer.decode([token]).strip()
        ]
        if len(strange) > TOLERATED * len(checked):
            token, text = strange[0]
            raise self._foreign(f"token {token}, which is {self._tokenizer.decode([token])!r} here, as {text!r}")

    def _foreign(self, what: str) -> DataError:
        return DataError(
            f"{self._settings.url} knows {what}: {self._settings.model} has another tokenizer",
            expected=f"that of {self._settings.tokenizer}",
            hint="Give its own as endpoint.tokenizer; students with another one learn from answers (`puna answer`)",
        )


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RejectedError(200, "an answer without choices")
    return choices[0]


def _spelled(row: Any, token: int) -> str | None:
    entry = row.get(str(token)) if isinstance(row, dict) else None
    return entry.get("decoded_token") if isinstance(entry, dict) else None


def _ids_of_texts(tokenizer: Tokenizer) -> dict[str, int]:
    """Map what OpenAI's layout calls a token to its id: its text, or `bytes:\\xe2\\x80` for a part of a character."""
    found: dict[str, int] = {}
    for token in range(tokenizer.vocab_size):
        try:
            spelled = tokenizer.decode_bytes([token])
        except TokenizerError:
            continue
        try:
            text = spelled.decode("utf-8")
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
        found.setdefault(text, token)
    return found
