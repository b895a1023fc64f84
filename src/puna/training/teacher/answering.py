"""A server that tells log-probabilities only of what it generates -> its answers to our conversations, labelled.

Each conversation's last assistant message gives way to what the server answers there. The tokens that it says are
looked up in our tokenizer by their bytes; an answer that our tokenizer would write in other tokens is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from puna.formats.chat.conversation import Conversation, Message
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.inference.completer.completer import Prompt, Reply, ReplyToken, Sampling
from puna.inference.completer.endpoint import EndpointCompleter
from puna.pipeline.errors import ConfigError, DataError, TokenizerError
from puna.training.teacher.settings import TeacherEndpoint
from puna.training.teacher.teacher import Item, Label, Labelled, labelled_row

OTHER_TOKENS = "answers in tokens that are not this tokenizer's"
# Answers after which a tokenizer that does not fit is certain, and the share of them that may be in other tokens.
NUM_CERTAIN, TOLERATED = 20, 0.2


class AnsweringTeacher:
    """Asks /chat/completions with `logprobs`; a call of a tool, or an answer that is cut off, is left out."""

    def __init__(
        self, completer: EndpointCompleter, settings: TeacherEndpoint, tokenizer: Tokenizer, top_k: int, seed: int
    ):
        self._completer, self._settings = completer, settings
        self._chat, self._top_k, self._seed = ChatFormat(tokenizer), top_k, seed
        self._sampling = Sampling(settings.answer_temperature, max_tokens=settings.max_tokens, top_logprobs=top_k)
        self._ids_of = _ids_of_bytes(tokenizer)
        self._num_seen = self._num_strange = 0

    def label(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Labelled]:
        labelled: list[Labelled] = []
        asked = [_question(item.row) for item in items]
        replies = self._completer.replies([Prompt(each, self._seed) for each in asked], self._sampling)
        for question, reply in zip(asked, replies, strict=True):
            labelled.append(self._label_reply(question, reply))
            self._count(labelled[-1])
            advance(1)
        return labelled

    def _count(self, labelled: Labelled) -> None:
        self._num_seen += labelled.labels is not None or labelled.reason == OTHER_TOKENS
        self._num_strange += labelled.reason == OTHER_TOKENS
        if self._num_seen >= NUM_CERTAIN and self._num_strange > TOLERATED * self._num_seen:
            raise DataError(
                f"{self._num_strange} of {self._num_seen} {OTHER_TOKENS} ({self._settings.model})",
                expected=f"the tokenizer of {self._settings.tokenizer}",
                hint="Let a student learn from the answers themselves: `puna answer`, then `puna sft`",
            )

    def _label_reply(self, asked: Conversation, reply: Reply) -> Labelled:
        config = self._completer.client.config
        if reply.failure:
            hint = "Many servers return at most 20 log-probabilities: lower top_k"
            raise ConfigError(f"{config.url}: {reply.failure}", expected="an answer", hint=hint)
        if reply.message.tool_calls:
            return Labelled(asked, None, "answered by a call of a tool")
        if reply.finish_reason != "stop":
            return Labelled(asked, None, f"the answer ended by {reply.finish_reason!r}")
        if not reply.logprobs:
            hint = "Train on the answers alone: `puna answer`, then `puna sft`"
            raise ConfigError(f"{config.url} returns no log-probabilities", expected="logprobs", hint=hint)
        return self._align(asked, reply.logprobs)

    def _align(self, asked: Conversation, tokens: Sequence[ReplyToken]) -> Labelled:
        """Find the answer's tokens in our tokenizer; where no end is told, it is certain."""
        ends = [self._label(entry) for entry in tokens[-1:] if self._ids_of.get(entry.token) in self._chat.stop_ids]
        answer = [entry for entry in tokens[: len(tokens) - len(ends)] if entry.token]
        text = b"".join(entry.token for entry in answer).decode("utf-8", "replace").strip()
        answered = asked.with_message(Message("assistant", text))
        ids, mask = self._chat.encode(answered)
        start = len(self._chat.prompt(asked))
        if [self._ids_of.get(entry.token) for entry in answer] != ids[start:-1]:
            return Labelled(asked, None, OTHER_TOKENS)
        labels = [self._label(entry) for entry in answer] + (ends or [Label([(ids[-1], 0.0)], 0.0)])
        # Only the answer is the teacher's own: what the assistant said before it has no labels.
        only_answer = [at >= start and is_trained for at, is_trained in enumerate(mask)]
        return Labelled(answered, labelled_row(ids, only_answer, labels, top_k=self._top_k))

    def _label(self, entry: ReplyToken) -> Label:
        token = self._ids_of[entry.token]
        known = {self._ids_of[other]: logprob for other, logprob in entry.alternatives if other in self._ids_of}
        return Label(list(({token: entry.logprob} | known).items()), entry.logprob)


def _question(row: object) -> Conversation:
    """Return the conversation up to the last answer that would be trained."""
    assert isinstance(row, Conversation)
    last = max(at for at, message in enumerate(row.messages) if message.is_learned)
    return replace(row, messages=row.messages[:last])


def _ids_of_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Map bytes to ids; a special token by its text, unless that is the text of another."""
    found: dict[bytes, int] = {}
    for token in sorted(range(tokenizer.vocab_size), key=tokenizer.is_special):
        try:
            found.setdefault(tokenizer.decode_bytes([token]), token)
        except TokenizerError:
            continue
    return found
