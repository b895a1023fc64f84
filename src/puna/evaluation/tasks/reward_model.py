"""RewardModel: a checkpoint of `puna reward` that says of a conversation, with one number, how good its last answer is.

Scores have no zero: only their differences mean something, and only for answers to the same prompt. Each conversation
is read alone, so a score does not depend on what else is scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from puna.evaluation.tasks.question import Grade, Question
from puna.formats.chat.conversation import Conversation, Message
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.model.attend import packed_attend
from puna.model.kernels.device import DeviceName, choose_device
from puna.model.llama import Llama
from puna.model.reward import scores
from puna.pipeline.errors import ChatError


@dataclass(frozen=True)
class RewardModel:
    """Judges answers as the people did whose preferences it learned."""

    model: Llama
    chat: ChatFormat

    @classmethod
    def open(cls, path: Path, *, dtype: torch.dtype | None = None, device: DeviceName = "auto") -> "RewardModel":
        """Load a reward model's directory onto the accelerator if there is one; CheckpointError if it is none."""
        checkpoint = Checkpoint.open(path, is_reward=True)
        return cls(checkpoint.load(dtype).to(choose_device(device)), ChatFormat(checkpoint.tokenizer()))

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Score conversations that end with what the assistant says; ChatError for one too long for the model."""
        return [self._score(conversation) for conversation in conversations]

    def can_read(self, conversation: Conversation) -> bool:
        """Tell whether the model's context has room for a conversation."""
        return len(self.chat.encode(conversation).ids) <= self.model.config.max_context

    def grade(self, question: Question, message: Message) -> Grade:
        """Judge an answer as a task does: the score, squeezed into 0..1."""
        (score,) = self.score([question.conversation.with_message(message)])
        return Grade(0.5 * (1 + math.tanh(score / 2)), f"reward {score:.4g}")

    def _score(self, conversation: Conversation) -> float:
        if not conversation.messages or conversation.messages[-1].role != "assistant":
            raise ChatError("a conversation without a last answer", expected="one that ends with the assistant")
        ids = torch.tensor(self.chat.encode(conversation).ids, device=self.model.device)
        if len(ids) > self.model.config.max_context:
            raise ChatError(f"{len(ids):,} tokens", expected=f"at most {self.model.config.max_context:,}")
        positions = torch.arange(len(ids), device=ids.device)
        hidden_TD = self.model(ids, positions, packed_attend([len(ids)]))
        return scores(self.model, hidden_TD[-1:]).item()
