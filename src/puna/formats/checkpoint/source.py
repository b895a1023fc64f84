"""A model in any format, as its config, its tokenizer and one tensor at a time, by Hugging Face's names and layout.

What reads a format returns a Source and what writes one takes it, so any format becomes any other with a few tensors in
memory. Computes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.model.llama import Llama


@dataclass(frozen=True)
class Source:
    """What any format offers.

    `read` takes a name of `tensor_shapes(config)` and returns that tensor in Hugging Face's layout (rotated halves), in
    any float dtype; it may be called in any order and raises CheckpointError. `dtype` is that of most weights as they
    are stored, `sampling` what generation_config.json says beside ids; None if nothing was said. `stop_ids` are those
    that the model names itself. A format without a tokenizer has None.
    """

    format: str
    config: LlamaConfig
    dtype: torch.dtype
    read: Callable[[str], torch.Tensor] = field(repr=False)
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    sampling: Mapping[str, Any] | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def other_stop_ids(self) -> tuple[int, ...]:
        """The stop ids that are not among those of every Llama 3."""
        known = self.tokenizer.stop_ids if self.tokenizer else ()
        return tuple(dict.fromkeys(each for each in self.stop_ids if each not in known))


@lru_cache(maxsize=4)
def tensor_shapes(config: LlamaConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes of a model's tensors as Hugging Face's files have them, in the network's order."""
    with torch.device("meta"):
        model = Llama(config)
    return {disk_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def num_rotated_heads(name: str, config: LlamaConfig) -> int:
    """Return how many heads of a tensor RoPE rotates: of queries and keys all, of others none."""
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2], 0)


def disk_name(name: str) -> str:
    """Return the name on disk of one of the network's tensors."""
    return name if name.startswith(("lm_head.", "score.")) else f"model.{name}"
