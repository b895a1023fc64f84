"""An adapter and a tensor of the base -> the tensor with the adapter added, in float32.

A base with tied head and embeddings is the hard case. PEFT wraps the two modules separately: a copy in
modules_to_save or a LoRA changes a single module, so the merged model has two tables. Head and embeddings share the
rows of chosen tokens, unless trainable_token_indices names the two modules with different rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from puna.formats.checkpoint.adapters.config import AdapterConfig
from puna.formats.checkpoint.adapters.keys import (
    BASE_LAYER,
    DOWN,
    EMBEDDING,
    EMBEDDING_DOWN,
    EMBEDDING_UP,
    HEAD,
    MAGNITUDE,
    TOKENS,
    UP,
    WHOLE,
    token_rows,
)
from puna.formats.checkpoint.adapters.patterns import module_settings
from puna.formats.checkpoint.hf.weights import read_float
from puna.formats.checkpoint.safetensors.header import StoredTensor
from puna.formats.checkpoint.source import Source
from puna.model.config import LlamaConfig

Parts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Delta:
    """The settings and tensors of an adapter, applied to a base tensor by tensor. Example: see `open_adapter`.

    Attributes:
        parts: Names of stored parts (LoRA matrices, magnitudes, whole tensors) by the tensor of the base.
    """

    config: AdapterConfig
    layout: Mapping[str, StoredTensor]
    parts: Parts

    @cached_property
    def scales(self) -> dict[str, float]:
        """The LoRA scaling by tensor: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv 2312.03732)."""
        ranks, is_root = stored_ranks(self.layout, self.parts), self.config.is_rank_stabilized
        settings = module_settings(self.config, [name.removesuffix(".weight") for name in ranks])
        alphas = {name: settings[name.removesuffix(".weight")].alpha for name in ranks}
        return {name: alphas[name] / (rank**0.5 if is_root else max(rank, 1)) for name, rank in ranks.items()}

    def read(self, name: str, part: str) -> torch.Tensor:
        """Return a stored part in float32."""
        return read_float(self.layout, self.parts[name][part]).float()

    def merged_config(self, base: LlamaConfig) -> LlamaConfig:
        """Return the base's config with the adapter's vocabulary, and untied where head and embeddings part."""
        is_tied = base.tie_embeddings and self._stays_tied
        return replace(base, vocab_size=self.vocab_size(base), tie_embeddings=is_tied)

    def vocab_size(self, base: LlamaConfig) -> int:
        """Return the number of rows of the tables: the base's, unless the adapter stores tables of a different size."""
        tables = [self.parts.get(name, {}) for name in (EMBEDDING, HEAD)]
        stored = [parts[part] for parts in tables for part in (WHOLE, BASE_LAYER) if part in parts]
        shapes = [self.layout[key].shape for key in stored]
        return next((shape[0] for shape in shapes if len(shape) == 2), base.vocab_size)

    @cached_property
    def _stays_tied(self) -> bool:
        """Return whether a single table still serves as embeddings and head of a tied base."""
        embedding, head = ({*self.parts.get(name, {})} for name in (EMBEDDING, HEAD))
        if BASE_LAYER in embedding & head and not self._are_equal(BASE_LAYER, BASE_LAYER):
            return False
        embedding, head = embedding - {BASE_LAYER}, head - {BASE_LAYER}
        if not head and (embedding <= {TOKENS} or self.config.is_tied):
            return True
        if embedding == head == {WHOLE}:
            return self._are_equal(WHOLE, WHOLE)
        if embedding == head == {TOKENS}:
            rows = {token_rows(self.config, name, is_tied=True) for name in (EMBEDDING, HEAD)}
            return len(rows) == 1 and self._are_equal(TOKENS, TOKENS)
        if (embedding, head) != ({EMBEDDING_DOWN, EMBEDDING_UP}, {DOWN, UP}):
            return False
        # ensure_weight_tying: the head has the embeddings' two matrices, transposed.
        return (
            self.scales[EMBEDDING] == self.scales[HEAD]
            and self._are_equal(EMBEDDING_DOWN, UP, is_transposed=True)
            and self._are_equal(EMBEDDING_UP, DOWN, is_transposed=True)
        )

    def _are_equal(self, part: str, head_part: str, *, is_transposed: bool = False) -> bool:
        embedding, head = self.read(EMBEDDING, part), self.read(HEAD, head_part)
        return torch.equal(embedding, head.T if is_transposed else head)

    def apply(self, base: Source, name: str) -> torch.Tensor:
        """Return a tensor of the base with the adapter's update."""
        parts = self.parts.get(name, {})
        if WHOLE in parts:
            return self.read(name, WHOLE)
        weight = self._beneath(base, name)
        if TOKENS in parts:
            weight = self._with_rows(weight, name, name)
        elif name == HEAD and base.config.tie_embeddings and TOKENS in self.parts.get(EMBEDDING, {}):
            weight = self._with_rows(weight, name, EMBEDDING)
        if not {*parts} & {DOWN, EMBEDDING_DOWN}:
            return weight
        return self._with_product(weight.float(), name)

    def _beneath(self, base: Source, name: str) -> torch.Tensor:
        """Return the tensor under the adapter: the base's, or a replacement stored by PEFT."""
        is_tied = base.config.tie_embeddings and name in (EMBEDDING, HEAD)
        for source in (name, EMBEDDING, HEAD) if is_tied else (name,):
            if BASE_LAYER in self.parts.get(source, {}):
                return self.read(source, BASE_LAYER)
        return base.read(EMBEDDING if is_tied else name)

    def _with_rows(self, weight: torch.Tensor, name: str, source: str) -> torch.Tensor:
        rows = torch.tensor(token_rows(self.config, name, is_tied=True))
        return weight.float().index_copy(0, rows, self.read(source, TOKENS))

    def _with_product(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        parts = self.parts[name]
        is_embedding = EMBEDDING_DOWN in parts
        down, up = (self.read(name, part) for part in matrices(parts))
        product = (up @ down) * self.scales[name]
        weight = weight + (product.T if is_embedding else product)
        if MAGNITUDE not in parts:
            return weight
        # DoRA (arXiv 2402.09353): the direction of the sum, the length that was learned.
        magnitude = self.read(name, MAGNITUDE).flatten()
        if is_embedding:  # each dimension of the vectors has a length, over all tokens
            return weight * (magnitude / weight.norm(dim=0))
        return weight * (magnitude / weight.norm(dim=1))[:, None]


def stored_ranks(layout: Mapping[str, StoredTensor], parts: Parts) -> dict[str, int]:
    """Return the stored rank of every pair of matrices, by the tensor of the base."""
    keys = {name: stored.get(DOWN) or stored.get(EMBEDDING_DOWN) for name, stored in parts.items()}
    return {name: (layout[key].shape or (0,))[0] for name, key in keys.items() if key}


def matrices(parts: Mapping[str, str]) -> tuple[str, str]:
    """Return the names of the two matrices of a module: an embedding's, or a linear layer's."""
    return (EMBEDDING_DOWN, EMBEDDING_UP) if EMBEDDING_DOWN in parts else (DOWN, UP)
