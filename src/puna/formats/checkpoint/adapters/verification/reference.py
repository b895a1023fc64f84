"""A base's network and an adapter's raw files -> logits of base and adapter side by side: the reference for a merge.

Independent of the merge: reads adapter_config.json and the safetensors file directly, finds modules by the network's
paths, and adds every update to a product at run time, never to a weight. The file shares no code with the merge, to
avoid repeating mistakes of the merge. PEFT's rules as in peft 0.21.

Shapes: T tokens, D model width, R rank, I inputs, O outputs, V vocabulary.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from puna.model.attend import packed_attend
from puna.model.llama import Llama

EMBEDDINGS, HEAD = "embed_tokens", "lm_head"

Stored = dict[str, torch.Tensor]


class SideBySide:
    """A network of float weights and an adapter, computed side by side; the network stays unchanged.

    Args:
        model: The base.
        directory: Directory of an adapter, opened before by `open_adapter` without an error.

    Example:
        logits_TV = SideBySide(base, Path("adapters/acme")).logits(tokens_T)
    """

    def __init__(self, model: Llama, directory: Path):
        self.model = model
        self.raw: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        stored = load_file(directory / "adapter_model.safetensors")
        self.parts = self._assign({key: tensor.to(model.dtype) for key, tensor in stored.items()})

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return logits_TV of a text, in float32."""
        tokens_T = torch.tensor(ids)
        with self._hooked(tokens_T):
            hidden_TD = self.model(tokens_T, torch.arange(len(ids)), packed_attend([len(ids)]))
        return self._head(hidden_TD).float()

    def _assign(self, stored: Stored) -> dict[str, Stored]:
        """Sort the stored tensors by module: the first path in a key counts, then the longest."""
        paths = [path for path in (*dict(self.model.named_modules()), HEAD) if path]
        parts: dict[str, Stored] = defaultdict(dict)
        for name, tensor in sorted(stored.items(), key=lambda item: len(item[0])):
            key = re.sub(r"_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.", "", name)
            candidates = [path for path in paths if f".{path}." in f".{key}."]
            path = min(candidates, key=lambda path: (f".{key}.".index(f".{path}."), -len(path)))
            rest = f".{key}".partition(f".{path}.")[2].split(".")
            words = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
            kind = next((word for word in rest if word in words), "")
            if "trainable_tokens_delta" in rest:
                kind = "rows"
            elif not kind:
                inner = rest[-2] if rest[0] == "modules_to_save" and path != HEAD else ""
                if inner in dict(self.model.get_submodule(path).named_children() if inner else ()):
                    path = f"{path}.{inner}"
                is_base = "base_layer" in rest or "original_module" in rest
                is_copy = "modules_to_save" in rest or (not is_base and self._is_saved(path))
                kind = "copy" if is_copy else "under"
            parts[path].setdefault(kind, tensor)
        return parts

    def _is_saved(self, path: str) -> bool:
        full = self._full(path).split(".")
        parents = [".".join(full[:end]) for end in range(1, len(full) + 1)]
        return any(parent.endswith(name) for name in self.raw.get("modules_to_save") or [] for parent in parents)

    def _full(self, path: str) -> str:
        return path if path == HEAD else f"model.{path}"

    def _scale(self, path: str, rank: int) -> float:
        patterns = (self.raw.get("alpha_pattern") or {}).items()
        alphas = (alpha for key, alpha in patterns if re.match(rf"(.*\.)?({key})$", self._full(path)))
        return next(alphas, self.raw["lora_alpha"]) / (rank**0.5 if self.raw.get("use_rslora") else rank)

    @contextmanager
    def _hooked(self, tokens_T: torch.Tensor) -> Iterator[None]:
        """Let all modules of the network below the head compute with the adapter."""

        def embed(_module: nn.Module, _inputs: Any, _out: torch.Tensor) -> torch.Tensor:
            return self._embed(tokens_T)

        handles = [self.model.embed_tokens.register_forward_hook(embed)]
        for path, parts in self.parts.items():
            if path not in (EMBEDDINGS, HEAD):
                module = self.model.get_submodule(path)
                handles.append(module.register_forward_hook(self._layer_hook(path, parts)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _layer_hook(self, path: str, parts: Stored) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            weight = parts.get("copy", parts.get("under"))
            if weight is not None and weight.dim() == 1:  # a norm: the product with its own weight is undone
                return F.rms_norm(inputs[0].float(), weight.shape, eps=module.eps).to(out.dtype) * weight
            if weight is not None:
                out = F.linear(inputs[0], weight)
            return self._linear(path, parts, inputs[0], out, module.weight if weight is None else weight)

        return hook

    def _linear(
        self, path: str, parts: Stored, x_TI: torch.Tensor, out_TO: torch.Tensor, weight_OI: torch.Tensor
    ) -> torch.Tensor:
        if "lora_A" not in parts:
            return out_TO
        down_RI, up_OR = parts["lora_A"], parts["lora_B"]
        scale = self._scale(path, len(down_RI))
        out_TO = out_TO + ((x_TI @ down_RI.T) @ up_OR.T) * scale
        if "lora_magnitude_vector" in parts:
            lengths_O = torch.linalg.vector_norm(weight_OI.float() + scale * (up_OR @ down_RI).float(), dim=1)
            out_TO = out_TO * (parts["lora_magnitude_vector"].flatten() / lengths_O).to(out_TO.dtype)
        return out_TO

    @property
    def _is_tied(self) -> bool:
        return self.model.lm_head is None

    def _table(self, path: str) -> torch.Tensor:
        """Return the table beneath an adapter: stored again by PEFT, or the base's. A tied base has a shared table."""
        own = [self.parts[name] for name in ((path, EMBEDDINGS, HEAD) if self._is_tied else (path,))]
        module = self.model.embed_tokens if self._is_tied or path == EMBEDDINGS else self.model.lm_head
        assert module is not None
        return next((parts["under"] for parts in own if "under" in parts), module.get_parameter("weight"))

    def _ids(self, path: str) -> list[int]:
        """Return the ids of the replaced rows of a table."""
        if self.raw["peft_type"] != "LORA":
            return self.raw["token_indices"]
        rows_by_table = self.raw["trainable_token_indices"]
        rows_by_table = {EMBEDDINGS: rows_by_table} if isinstance(rows_by_table, list) else rows_by_table
        own = next((ids for name, ids in rows_by_table.items() if self._full(path).endswith(name)), None)
        return self._ids(EMBEDDINGS) if own is None else own

    def _embed(self, tokens_T: torch.Tensor) -> torch.Tensor:
        parts = self.parts[EMBEDDINGS]
        if "copy" in parts:
            return parts["copy"][tokens_T]
        table_VD = self._table(EMBEDDINGS)
        vectors_TD = table_VD[tokens_T]
        if "rows" in parts:
            for row, token in enumerate(self._ids(EMBEDDINGS)):
                vectors_TD = torch.where((tokens_T == token)[:, None], parts["rows"][row], vectors_TD)
        if "lora_embedding_A" not in parts:
            return vectors_TD
        down_RV, up_DR = parts["lora_embedding_A"], parts["lora_embedding_B"]
        scale = self._scale(EMBEDDINGS, len(down_RV))
        vectors_TD = vectors_TD + (down_RV[:, tokens_T].T @ up_DR.T) * scale
        if "lora_magnitude_vector" in parts:
            lengths_D = torch.linalg.vector_norm(table_VD.float() + scale * (up_DR @ down_RV).T.float(), dim=0)
            vectors_TD = vectors_TD * (parts["lora_magnitude_vector"].flatten() / lengths_D).to(vectors_TD.dtype)
        return vectors_TD

    def _head(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        parts = self._head_parts()
        if "copy" in parts:
            return F.linear(hidden_TD, parts["copy"])
        table_VD = self._table(HEAD)
        logits_TV = F.linear(hidden_TD, table_VD)
        rows = parts.get("rows", self.parts[EMBEDDINGS].get("rows") if self._is_tied else None)
        if rows is not None:
            logits_TV[:, self._ids(HEAD)] = F.linear(hidden_TD, rows)
        return self._linear(HEAD, parts, hidden_TD, logits_TV, table_VD)

    def _head_parts(self) -> Stored:
        """Return the head's parts; with ensure_weight_tying a head without parts takes the embeddings' parts."""
        parts, embedding = self.parts[HEAD], self.parts[EMBEDDINGS]
        if {*parts} - {"under"} or not (self._is_tied and self.raw.get("ensure_weight_tying")):
            return parts
        if "lora_embedding_A" in embedding:
            return {"lora_A": embedding["lora_embedding_B"].T, "lora_B": embedding["lora_embedding_A"].T}
        return {"copy": embedding["copy"]} if "copy" in embedding else parts
