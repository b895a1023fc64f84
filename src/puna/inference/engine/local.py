"""LocalSampler: token ids in, completions out, from a checkpoint loaded in-process. For a single thread at a time.

`sampling_defaults` reads the checkpoint's recommended sampling parameters; the caller decides.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from puna.formats.checkpoint.adapters.adapter import open_adapter, require_runnable
from puna.formats.checkpoint.adapters.folder import checkpoint_at
from puna.formats.checkpoint.checkpoint import GENERATION_NAME, Checkpoint
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.tokenizer import Tokenizer
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import DEFAULTS, EngineOptions
from puna.inference.engine.outputs import Chunk, Completion, collect
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.speculative.prompt_lookup import PromptLookup
from puna.model.kernels.device import DeviceName, choose_device
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError, ConfigError, RequestError

LOOKUP = "lookup"
# Fields read from generation_config.json.
STATED = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}


@dataclass(eq=False)
class _Inbox:
    """Chunks of the requests of a call."""

    chunks: dict[int, list[Chunk]] = field(default_factory=dict)
    num_done: int = 0


class LocalSampler:
    """An engine with blocking calls; concurrent streams and completions share batches.

    Example:
        >>> sampler = LocalSampler.open(Path("build/model"))
        >>> sampler.complete([sampler.tokenizer.encode("Once")], SamplingParams(max_tokens=4))[0].text
        ' upon a time'
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        options: EngineOptions = DEFAULTS,
        draft: Llama | PromptLookup | None = None,
        adapter: str = "",
    ):
        self.tokenizer, self.adapter = tokenizer, adapter
        self.engine = Engine(model, tokenizer, options=options, draft=draft)
        self._inboxes: dict[int, _Inbox] = {}

    @classmethod
    def open(
        cls, path: Path, *, options: EngineOptions = DEFAULTS, device: DeviceName = "auto", draft: str = ""
    ) -> "LocalSampler":
        """Load a checkpoint, or an adapter with the base.

        Args:
            path: Checkpoint or adapter; lineage or adapter_config.json names an adapter's base.
            options: Engine options; without a dtype, the dtype of the files.
            device: Device; auto prefers a GPU.
            draft: Draft model for speculative decoding, with the same tokenizer; "lookup" drafts from the prompt.
        """
        checkpoint, adapter = Checkpoint.open(checkpoint_at(path)), ""
        if checkpoint.path != path:
            require_runnable(open_adapter(path), checkpoint.config)
            options, adapter = replace(options, adapters=path.resolve().parent), path.resolve().name
        checkpoint.prefetch()
        target_device = choose_device(device)
        tokenizer = checkpoint.tokenizer()  # Overlaps with the prefetch.
        model = checkpoint.load(dtype=options.dtype).to(target_device)
        drafter = _open_draft(draft, tokenizer, target_device) if draft else None
        return cls(model, tokenizer, options=options, draft=drafter, adapter=adapter)

    @property
    def max_context(self) -> int:
        return self.engine.max_context

    def complete(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Continue every prompt in order; RequestError before any work if a prompt can never fit."""
        all_params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(all_params) != len(prompts):
            raise RequestError(
                f"{len(all_params)} params for {len(prompts)} prompts",
                expected="one SamplingParams per prompt",
                param="params",
            )
        pairs = list(zip(prompts, all_params, strict=True))
        for pair in pairs:
            self.engine.check(*pair)
        # Longest first: requests of similar length share batches, and no long request ends up alone.
        order = sorted(range(len(pairs)), key=lambda i: -len(prompts[i]) - all_params[i].max_tokens)
        inbox = _Inbox()
        try:
            ids = {i: self._submit(*pairs[i], inbox) for i in order}
            reported = 0
            while inbox.num_done < len(pairs):
                self._pump()
                if progress and inbox.num_done > reported:
                    reported = inbox.num_done
                    progress(reported)
        finally:
            self._close(inbox)
        return [collect(inbox.chunks[ids[i]], len(prompts[i])) for i in range(len(pairs))]

    def stream(self, prompt: list[int], params: SamplingParams) -> Generator[Chunk, None, None]:
        """Yield chunks of a prompt's continuation; closing the iterator aborts the request."""
        inbox = _Inbox()
        request_id = self._submit(prompt, params, inbox)
        return self._chunks(request_id, inbox)

    def _chunks(self, request_id: int, inbox: _Inbox) -> Generator[Chunk, None, None]:
        try:
            while True:
                ready, inbox.chunks[request_id] = inbox.chunks[request_id], []
                yield from ready
                if ready and ready[-1].finish_reason is not None:
                    return
                self._pump()
        finally:
            self._close(inbox)

    def _submit(self, prompt: list[int], params: SamplingParams, inbox: _Inbox) -> int:
        request_id = self.engine.submit(prompt, params, adapter=self.adapter)
        self._inboxes[request_id] = inbox
        inbox.chunks[request_id] = []
        return request_id

    def _pump(self) -> None:
        """Run a step and deliver chunks to the inboxes of all calls; calls may be nested."""
        for request_id, chunk in self.engine.step():
            inbox = self._inboxes.get(request_id)
            if inbox is not None:
                inbox.chunks[request_id].append(chunk)
                inbox.num_done += chunk.finish_reason is not None

    def _close(self, inbox: _Inbox) -> None:
        for request_id in inbox.chunks:
            self.engine.abort(request_id)
            self._inboxes.pop(request_id, None)


def sampling_defaults(checkpoint: Path, otherwise: SamplingParams) -> SamplingParams:
    """Read sampling parameters from generation_config.json; `otherwise` supplies missing fields.

    `do_sample = false` means temperature 0.
    """
    path = find_file(checkpoint_at(checkpoint), GENERATION_NAME)
    config = read_json(path) if path else {}
    values: dict[str, Any] = {}
    for name, kind in STATED.items():
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise CheckpointError(f"{path}: {name} = {value!r}", expected="a number")
        values[name] = kind(value)
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    try:
        return replace(otherwise, **values)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error.given}", expected=error.expected) from None


def _open_draft(draft: str, tokenizer: Tokenizer, device: torch.device) -> Llama | PromptLookup:
    if draft == LOOKUP:
        return PromptLookup()
    checkpoint = Checkpoint.open(Path(draft))
    if checkpoint.tokenizer().fingerprint != tokenizer.fingerprint:
        raise ConfigError(f"draft model {draft} has another tokenizer than the model", expected="the model's tokenizer")
    return checkpoint.load().to(device)
