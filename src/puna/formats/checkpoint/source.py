"""A model independent of the file format: config, tokenizer, and tensors with Hugging Face's names and layout.

Readers of a format return a Source and writers take a Source, so any format converts to any format with a few tensors
in memory.
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
    """A model in any format.

    Attributes:
        format: Name of the format, for messages.
        dtype: Dtype of most stored weights.
        read: Function from a name of `tensor_shapes(config)` to a tensor in Hugging Face's layout (rotated halves), in
            any float dtype. Calls may come in any order; CheckpointError for damaged tensors.
        tokenizer: Tokenizer; None for a format without tokenizers.
        sampling: Sampling defaults as in generation_config.json; None without stated defaults.
        stop_ids: Stop ids named by the model.

    Example:
        source = Checkpoint.open("models/base").source()
        source.read("model.norm.weight")
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
        """The stop ids in addition to the tokenizer's."""
        known = self.tokenizer.stop_ids if self.tokenizer else ()
        return tuple(dict.fromkeys(stop_id for stop_id in self.stop_ids if stop_id not in known))


@lru_cache(maxsize=4)
def tensor_shapes(config: LlamaConfig) -> Mapping[str, tuple[int, ...]]:
    """Return names and shapes of the tensors in Hugging Face's files, in the order of the network."""
    with torch.device("meta"):
        model = Llama(config)
    return {disk_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def num_rotated_heads(name: str, config: LlamaConfig) -> int:
    """Return the number of heads rotated by RoPE: all heads of q_proj and k_proj, 0 for the remaining tensors."""
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2], 0)


def disk_name(name: str) -> str:
    """Return Hugging Face's name of a tensor of the network."""
    return name if name.startswith(("lm_head.", "score.")) else f"model.{name}"
