"""What every training stage can be told: data, size or start, schedule, optimizer, precision."""

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from puna.data.preference import Strength
from puna.model.kernels.device import DeviceName
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision, StageConfig


class Size(StageConfig):
    """The widths of a model trained from scratch; embeddings are tied and RoPE is unscaled unless told otherwise."""

    dim: int = Field(ge=8, description="model width")
    hidden_dim: int = Field(ge=8, description="width inside the MLP")
    num_layers: int = Field(ge=1, description="transformer blocks")
    num_heads: int = Field(ge=1, description="query heads")
    num_kv_heads: int = Field(ge=1, description="key and value heads")
    tie_embeddings: bool = Field(default=True, description="one matrix for input and output embeddings")


class Optim(StageConfig):
    """AdamW with linear warm-up, then a cosine down to `final_lr_share` of the peak."""

    lr: float = Field(default=1e-3, gt=0, le=1, description="peak learning rate")
    final_lr_share: float = Field(default=0.05, ge=0, le=1, description="learning rate at the end, as a share of lr")
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="Number of steps of linear warm-up to the peak learning rate; default: a tenth of all, at most 50",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the second moment")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled decay of matrices; norms have none")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")

    @property
    def num_warmup_steps(self) -> int:
        """Steps of warm-up, once they are set or chosen (training/loop/defaults.py)."""
        assert self.warmup_steps is not None, "open settings are chosen before the first step"
        return self.warmup_steps


class Parallel(StageConfig):
    """Devices, and how processes that torchrun started divide the work; by default each reads batches of its own."""

    data: int | None = Field(default=None, ge=1, description="ways to divide batches; default: what the others leave")
    tensor: int = Field(default=1, ge=1, description="ways to divide matrices: heads, MLP, vocabulary")
    context: int = Field(default=1, ge=1, description="ways to divide the tokens of a batch")
    pipeline: int = Field(default=1, ge=1, description="ways to divide the layers")
    device: DeviceName = Field(
        default="auto", description="Device on which each process computes; auto takes a GPU if there is one"
    )


Target = Literal[
    "all", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"
]  # fmt: skip


class Adapter(StageConfig):
    """Train matrices of low rank beside those of the start, which stay as they are and may be quantized."""

    start: Path | None = Field(default=None, description="adapter to go on from, in the place of the first settings")
    targets: list[Target] = Field(default=["all"], min_length=1, description="matrices; all: those inside the layers")
    rank: int = Field(default=16, ge=1, le=4096, description="rows of the smaller matrices")
    alpha: float = Field(default=32.0, gt=0, le=1e6, description="what is added counts alpha / rank times")
    rank_stabilized: bool = Field(default=False, description="alpha / sqrt(rank) instead (rsLoRA)")
    dora: bool = Field(default=False, description="learn the lengths of the rows apart from their directions (DoRA)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of what the matrices read that is left out")

    @model_validator(mode="after")
    def _is_new_or_goes_on(self) -> Self:
        told = sorted(self.model_fields_set - {"start", "dropout"})
        if self.start is not None and told:
            raise ValueError(f"no {', '.join(told)} beside 'start': an adapter that goes on keeps its own")
        return self


class TrainConfig(StageConfig):
    """Settings that pretrain, sft and distill share."""

    has_preview: ClassVar[bool] = True
    is_parallel: ClassVar[bool] = True
    data: list[Path] = Field(description="datasets, read as one")
    start: Path | None = Field(default=None, description="checkpoint to go on from")
    size: str | Size | None = Field(
        default=None, description="size of a model from scratch: a name, or a table of widths"
    )
    tokenizer: Path | None = Field(default=None, description="tokenizer of a model trained from scratch")
    adapter: Adapter | None = Field(default=None, description="train an adapter (LoRA) instead of all weights")
    context: int | None = Field(
        default=None,
        ge=16,
        le=131_072,
        description="Maximum example length in tokens, 16 to 131,072; default: chosen from the lengths of the data",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Number of tokens per packed batch; more take more memory; default: 4096, fewer for short epochs",
    )
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; either steps or epochs")
    epochs: float | None = Field(default=None, gt=0, description="passes over the data; either steps or epochs")
    optim: Optim = Field(default=Optim(), description="optimizer and schedule")
    precision: Precision = Field(default="bfloat16", description="dtype of the activations")
    checkpoint_activations: bool = Field(
        default=False, description="compute each block again in the backward pass: less memory, a third more time"
    )
    seed: int = Field(default=0, ge=0, description="of the initial weights and the order of the data")
    save_minutes: float = Field(default=3.0, gt=0, description="minutes between checkpoints to resume from")
    fresh_identifiers: bool = Field(default=False, description="new random digits for identifiers in every epoch")
    parallel: Parallel = Field(default=Parallel(), description="how many processes share the work")
    validation: list[Path] = Field(default=[], description="datasets for a validation loss, ten times a run")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of 'steps' and 'epochs'")
        if (self.start is None) == (self.size is None):
            raise ValueError("exactly one of 'start' (a checkpoint) and 'size' (from scratch)")
        if (self.size is None) != (self.tokenizer is None):
            raise ValueError("'tokenizer' beside 'size', and only there: a checkpoint has its own")
        if self.adapter is not None and self.start is None:
            raise ValueError("'adapter' beside 'start': without a trained model there is nothing to adapt")
        if self.batch_tokens is not None and self.context is not None and self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens ({self.batch_tokens}) of at least context ({self.context})")
        return self

    @property
    def max_length(self) -> int:
        """The context in tokens, once it is set or chosen (training/loop/defaults.py)."""
        assert self.context is not None, "open settings are chosen before the first step"
        return self.context

    @property
    def max_batch_tokens(self) -> int:
        """The tokens of a batch, once they are set or chosen (training/loop/defaults.py)."""
        assert self.batch_tokens is not None, "open settings are chosen before the first step"
        return self.batch_tokens

    @property
    def dtype(self) -> torch.dtype:
        """The activations' dtype."""
        return torch_dtype(self.precision)


class PreferenceOptim(Optim):
    """AdamW at the rate of the Llama 3 paper's DPO."""

    lr: float = Field(default=1e-5, gt=0, le=1, description="peak learning rate")


class PreferenceConfig(TrainConfig):
    """Settings that dpo and reward share."""

    # A frozen model's field may be narrower than its parent's.
    optim: PreferenceOptim = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=PreferenceOptim(), description="optimizer and schedule"
    )
    strengths: list[Strength] = Field(
        default=["significantly better", "better"],
        description="how much better a chosen answer must be; unknown strengths and edited answers always count",
    )

    @model_validator(mode="after")
    def _leaves_identifiers(self) -> Self:
        if self.fresh_identifiers:
            raise ValueError("no fresh_identifiers: answers are compared as they were judged")
        return self
