"""A server that tells log-probabilities only of what it generates -> its answers to our conversations, labelled.

Each conversation's last assistant message gives way to what the server answers there. The tokens that it says are
looked up in our tokenizer by their bytes; an answer that our tokenizer would write in other tokens is left out.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from puna.formats.chat.conversation import Conversation, Message
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.errors import ConfigError, DataError, TokenizerError
from puna.training.labelling.endpoint import Endpoint, Refused
from puna.training.labelling.teacher import Item, Label, Labelled, labelled_row

OTHER_TOKENS = "answers in tokens that are not this tokenizer's"
# Answers after which a tokenizer that does not fit is certain, and the share of them that may be in other tokens.
NUM_CERTAIN, TOLERATED = 20, 0.2


class AnsweringTeacher:
    """Asks /chat/completions with `logprobs`; a call of a tool, or an answer that is cut off, is left out."""

    def __init__(self, endpoint: Endpoint, tokenizer: Tokenizer, top_k: int, seed: int):
        self._endpoint, self._chat, self._top_k, self._seed = endpoint, ChatFormat(tokenizer), top_k, seed
        self._ids_of = _ids_of_bytes(tokenizer)
        self._num_seen = self._num_strange = 0

    def label(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Labelled]:
        labelled: list[Labelled] = []
        for found in self._endpoint.each(self._one, [item.row for item in items]):
            labelled.append(found)
            self._count(found)
            advance(1)
        return labelled

    def _count(self, labelled: Labelled) -> None:
        self._num_seen += labelled.labels is not None or labelled.reason == OTHER_TOKENS
        self._num_strange += labelled.reason == OTHER_TOKENS
        if self._num_seen >= NUM_CERTAIN and self._num_strange > TOLERATED * self._num_seen:
            raise DataError(
                f"{self._num_strange} of {self._num_seen} {OTHER_TOKENS} ({self._endpoint.config.model})",
                expected=f"the tokenizer of {self._endpoint.config.tokenizer}",
                hint="Let a student learn from the answers themselves: `puna answer`, then `puna sft`",
            )

    def _one(self, row: object) -> Labelled:
        assert isinstance(row, Conversation)
        last = max(at for at, message in enumerate(row.messages) if message.is_learned)
        asked = replace(row, messages=row.messages[:last])
        choice = self._ask(asked)
        message, reason = choice.get("message") or {}, choice.get("finish_reason")
        if message.get("tool_calls"):
            return Labelled(row, None, "answered by a call of a tool")
        if reason != "stop":
            return Labelled(row, None, f"the answer ended by {reason!r}")
        content = (choice.get("logprobs") or {}).get("content")
        if not isinstance(content, list) or not content:
            hint = "Without them it can teach by its answers alone: `puna answer`, then `puna sft`"
            raise ConfigError(f"{self._endpoint.config.url} tells no log-probabilities", expected="logprobs", hint=hint)
        return self._align(asked, content)

    def _ask(self, asked: Conversation) -> dict[str, Any]:
        config, spelled = self._endpoint.config, asked.to_json()
        body: dict[str, Any] = {"messages": _messages(asked), "logprobs": True, "top_logprobs": self._top_k}
        body |= {"max_tokens": config.max_tokens, "temperature": config.answer_temperature, "seed": self._seed}
        body |= {"tools": spelled["tools"]} if asked.tools else {}
        try:
            choices = self._endpoint.post("/chat/completions", body).get("choices")
        except Refused as error:
            hint = "Many servers tell at most 20: lower top_k"
            raise ConfigError(f"{config.url} refused: {error.message}", expected="an answer", hint=hint) from None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise DataError(f"{config.url} gives an answer without choices", expected="OpenAI's layout")
        return choices[0]

    def _align(self, asked: Conversation, content: Sequence[dict[str, Any]]) -> Labelled:
        """Find the answer's tokens in our tokenizer; where no end is told, it is certain."""
        ends = [self._label(entry) for entry in content[-1:] if self._id_of(entry) in self._chat.stop_ids]
        spoken = [entry for entry in content[: len(content) - len(ends)] if self._bytes_of(entry)]
        text = b"".join(self._bytes_of(entry) for entry in spoken).decode("utf-8", "replace").strip()
        answered = asked.with_message(Message("assistant", text))
        ids, mask = self._chat.encode(answered)
        start = len(self._chat.prompt(asked))
        if [self._id_of(entry) for entry in spoken] != ids[start:-1]:
            return Labelled(asked, None, OTHER_TOKENS)
        labels = [self._label(entry) for entry in spoken] + (ends or [Label([(ids[-1], 0.0)], 0.0)])
        # Only the answer is the teacher's own: what the assistant said before it has no labels.
        only_answer = [at >= start and is_trained for at, is_trained in enumerate(mask)]
        return Labelled(answered, labelled_row(ids, only_answer, labels, top_k=self._top_k))

    def _label(self, entry: dict[str, Any]) -> Label:
        token, logprob = self._id_of(entry), float(entry["logprob"])
        assert token is not None
        found = {self._id_of(each): float(each["logprob"]) for each in entry.get("top_logprobs") or []}
        found.pop(None, None)
        entries = {token: logprob} | found
        return Label([(each, value) for each, value in entries.items() if each is not None], logprob)

    def _id_of(self, entry: dict[str, Any]) -> int | None:
        return self._ids_of.get(self._bytes_of(entry))

    def _bytes_of(self, entry: dict[str, Any]) -> bytes:
        spelled = entry.get("bytes")
        return bytes(spelled) if isinstance(spelled, list) else str(entry.get("token", "")).encode()


def _messages(asked: Conversation) -> list[dict[str, Any]]:
    """Spell the messages as OpenAI has them: arguments as JSON text, each call with an id that its result names."""
    spelled: list[dict[str, Any]] = []
    last_ids: list[str] = []
    for at, message in enumerate(asked.messages):
        told = replace(message, weight=1).to_json()
        if message.tool_calls:
            last_ids = [call.id or f"call_{at}_{number}" for number, call in enumerate(message.tool_calls)]
            told["tool_calls"] = [
                {"id": name, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
                for name, c in zip(last_ids, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            told["tool_call_id"] = message.tool_call_id or (last_ids.pop(0) if last_ids else f"call_{at}")
        spelled.append(told)
    return spelled


def _ids_of_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Map bytes to ids; a special token by its text, unless that is the text of another."""
    found: dict[bytes, int] = {}
    for token in sorted(range(tokenizer.vocab_size), key=tokenizer.is_special):
        try:
            found.setdefault(tokenizer.decode_bytes([token]), token)
        except TokenizerError:
            continue
    return found
