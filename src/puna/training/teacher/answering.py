"""An endpoint with log-probabilities for generated tokens only -> labelled answers to the data's conversations.

The endpoint's answer replaces the last assistant message of a conversation. Tokens are matched to the student's
tokenizer by bytes. An answer with a different tokenization in the student's tokenizer is left out.
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
# Number of answers before a mismatch of tokenizers is certain, and the tolerated share of mismatches.
NUM_CERTAIN, TOLERATED = 20, 0.2


class AnsweringTeacher:
    """A teacher behind /chat/completions; tool calls and cut-off answers are left out.

    Example: `[label.endpoint]` with `answers = true`.
    """

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
                hint="Train on the answers alone: `puna answer`, then `puna sft`",
            )

    def _label_reply(self, asked: Conversation, reply: Reply) -> Labelled:
        config = self._completer.client.config
        if reply.failure:
            hint = "Many servers return at most 20 log-probabilities: lower top_k"
            raise ConfigError(f"{config.url}: {reply.failure}", expected="an answer with log-probabilities", hint=hint)
        if reply.message.tool_calls:
            return Labelled(asked, None, "answered by a call of a tool")
        if reply.finish_reason != "stop":
            return Labelled(asked, None, f"the answer ended by {reply.finish_reason!r}")
        if not reply.logprobs:
            hint = "Train on the answers alone: `puna answer`, then `puna sft`"
            raise ConfigError(
                f"{config.url} returns no log-probabilities",
                expected="the log-probabilities of generated tokens",
                hint=hint,
            )
        return self._align(asked, reply.logprobs)

    def _align(self, asked: Conversation, tokens: Sequence[ReplyToken]) -> Labelled:
        """Label the answer in the student's tokens; a missing end token gets probability 1."""
        ends = [self._label(entry) for entry in tokens[-1:] if self._ids_of.get(entry.token) in self._chat.stop_ids]
        answer = [entry for entry in tokens[: len(tokens) - len(ends)] if entry.token]
        text = b"".join(entry.token for entry in answer).decode("utf-8", "replace").strip()
        answered = asked.with_message(Message("assistant", text))
        ids, mask = self._chat.encode(answered)
        start = len(self._chat.prompt(asked))
        if [self._ids_of.get(entry.token) for entry in answer] != ids[start:-1]:
            return Labelled(asked, None, OTHER_TOKENS)
        labels = [self._label(entry) for entry in answer] + (ends or [Label([(ids[-1], 0.0)], 0.0)])
        # Earlier assistant messages have no labels: the teacher did not write them.
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
    """Map bytes to token ids; ordinary tokens win over special tokens of the same text."""
    ids: dict[bytes, int] = {}
    for token in sorted(range(tokenizer.vocab_size), key=tokenizer.is_special):
        try:
            ids.setdefault(tokenizer.decode_bytes([token]), token)
        except TokenizerError:
            continue
    return ids
