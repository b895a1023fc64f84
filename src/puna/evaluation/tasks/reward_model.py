"""RewardModel: a checkpoint of `puna reward` -> a score for the last answer of a conversation.

Only differences between scores of answers to the same prompt have a meaning (Bradley-Terry model). Every conversation
runs alone through the network, and a score does not depend on other conversations.
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
    """A reward model, trained on human preferences.

    Example:
        >>> RewardModel.open(Path("build/reward")).score([conversation])
        [1.25]
    """

    model: Llama
    chat: ChatFormat

    @classmethod
    def open(cls, path: Path, *, dtype: torch.dtype | None = None, device: DeviceName = "auto") -> "RewardModel":
        """Load a reward model; CheckpointError for another kind of checkpoint."""
        checkpoint = Checkpoint.open(path, is_reward=True)
        return cls(checkpoint.load(dtype).to(choose_device(device)), ChatFormat(checkpoint.tokenizer()))

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Score conversations with a last answer of the assistant; ChatError if longer than the model's context."""
        return [self._score(conversation) for conversation in conversations]

    def can_read(self, conversation: Conversation) -> bool:
        """Tell whether a conversation fits the model's context."""
        return len(self.chat.encode(conversation).ids) <= self.model.config.max_context

    def grade(self, question: Question, message: Message) -> Grade:
        """Grade an answer with the sigmoid of the score, from 0 to 1."""
        (score,) = self.score([question.conversation.with_message(message)])
        return Grade(0.5 * (1 + math.tanh(score / 2)), f"reward {score:.4g}")

    def _score(self, conversation: Conversation) -> float:
        if not conversation.messages or conversation.messages[-1].role != "assistant":
            raise ChatError(
                "a conversation without a last answer", expected="a conversation that ends with the assistant"
            )
        ids = torch.tensor(self.chat.encode(conversation).ids, device=self.model.device)
        if len(ids) > self.model.config.max_context:
            raise ChatError(f"{len(ids):,} tokens", expected=f"at most {self.model.config.max_context:,} tokens")
        positions = torch.arange(len(ids), device=ids.device)
        hidden_TD = self.model(ids, positions, packed_attend([len(ids)]))
        return scores(self.model, hidden_TD[-1:]).item()
