"""An endpoint that scores prompts -> labels, by vLLM's `prompt_logprobs` or OpenAI's `echo` with `logprobs`.

`prompt_logprobs` returns token ids and is exact. `echo` returns token texts: alternatives without a single id of the
student's tokenizer go to the tail. Every answer is checked for the tokenization of the student's tokenizer.
"""

from collections.abc import Callable, Sequence
from typing import Any

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.completer.http import EndpointClient, RejectedError
from puna.pipeline.errors import ConfigError, DataError, TokenizerError
from puna.training.teacher.settings import TeacherEndpoint
from puna.training.teacher.teacher import Item, Label, Labelled, Piece, cut, labelled_row

# The replacement character stands for bytes of an incomplete character.
BROKEN = "\ufffd"
ID_PREFIX = "token_id:"
# Share of tokens with a different spelling above which the endpoint has a different tokenizer.
TOLERATED = 0.02

Way = Callable[[Sequence[int]], "list[Label | None]"]


class ScoringTeacher:
    """A teacher behind /completions, asked once per text or piece of `context` tokens.

    Example: `[label.endpoint]` of `puna.training.label`.
    """

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
        for result in self._client.map(self._one, items):
            labelled.append(result)
            advance(1)
        return labelled

    def _one(self, item: Item) -> Labelled:
        assert self._way
        labels: list[Label] = []
        for piece in cut(0, item, self._context):
            result = self._way(piece.ids)
            labels += [self._require(result[at]) for at in piece.wanted]
        return Labelled(item.row, labelled_row(item.ids, item.mask, labels, top_k=self._top_k))

    def _require(self, label: Label | None) -> Label:
        if label is None or not label.entries:
            raise DataError(
                f"{self._settings.url} scores only some tokens of a text", expected="a log-probability for every token"
            )
        return label

    def _find_way(self, piece: Piece) -> Way:
        """Return the first request format that the endpoint supports; ConfigError if none works."""
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
            hint="Lower top_k or raise the server's limit (vLLM: --max-logprobs). For a server with log-probabilities "
            "of generated tokens only, set endpoint.answers = true",
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
        entries = [(int(key), float(entry["logprob"])) for key, entry in row.items()]
        if max(entries)[0] >= self._tokenizer.vocab_size:
            raise self._foreign(f"token id {max(entries)[0]}")
        return Label(entries, float(row[str(token)]["logprob"]))

    def _by_echo_of_ids(self, ids: Sequence[int]) -> "list[Label | None]":
        return self._echo(ids, {"return_tokens_as_token_ids": True})

    def _by_echo(self, ids: Sequence[int]) -> "list[Label | None]":
        return self._echo(ids, {})

    def _echo(self, ids: Sequence[int], more: dict[str, Any]) -> "list[Label | None]":
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": self._top_k, **more}
        logprobs = _first_choice(self._client.post("/completions", body)).get("logprobs")
        names = ("tokens", "token_logprobs", "top_logprobs")
        columns = [logprobs.get(name) for name in names] if isinstance(logprobs, dict) else []
        lists = [column[: len(ids)] for column in columns if isinstance(column, list) and len(column) >= len(ids)]
        if len(lists) < len(names):
            raise RejectedError(200, "an answer without echoed logprobs")
        tokens, chosen, tops = lists
        self._require_same_tokens(ids, tokens)
        return [
            None if logprob is None else Label(self._known_entries(top, token, logprob), float(logprob))
            for token, logprob, top in zip(ids, chosen, tops, strict=True)
        ]

    def _known_entries(self, top: Any, token: int, logprob: float) -> list[tuple[int, float]]:
        entries = {self._id_of(text): float(value) for text, value in (top or {}).items()}
        entries.pop(None, None)
        return [(each, value) for each, value in ({token: logprob} | entries).items() if each is not None]

    def _id_of(self, text: str) -> int | None:
        if text.startswith(ID_PREFIX) and text[len(ID_PREFIX) :].isdecimal():
            token = int(text[len(ID_PREFIX) :])
            if token >= self._tokenizer.vocab_size:
                raise self._foreign(f"token id {token}")
            return token
        return self._ids_of.get(text)

    def _require_same_tokens(self, ids: Sequence[int], spelled: Sequence[str | None]) -> None:
        """Compare tokens with the endpoint's spelling, except for partial characters."""
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
            raise self._foreign(f"token {token} as {text!r}, not {self._tokenizer.decode([token])!r}")

    def _foreign(self, evidence: str) -> DataError:
        return DataError(
            f"{self._settings.url} returns {evidence}: {self._settings.model} has another tokenizer",
            expected=f"the tokenizer of {self._settings.tokenizer}",
            hint="Set endpoint.tokenizer to the model's own tokenizer; a student with another tokenizer learns from "
            "answers (`puna answer`)",
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
    """Map token texts of OpenAI's layout to ids; `bytes:\\xe2\\x80` stands for a partial character."""
    ids: dict[str, int] = {}
    for token in range(tokenizer.vocab_size):
        try:
            spelled = tokenizer.decode_bytes([token])
        except TokenizerError:
            continue
        try:
            text = spelled.decode("utf-8")
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
        ids.setdefault(text, token)
    return ids
