"""The settings of all training stages: data, initial weights, schedule, optimizer, precision, parallelism."""

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from puna.data.preference import Strength
from puna.model.kernels.device import DeviceName
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision, StageConfig


class Size(StageConfig):
    """The widths of a new model. RoPE is unscaled; embeddings are tied by default.

    Example:
        >>> Size(dim=64, hidden_dim=256, num_layers=2, num_heads=4, num_kv_heads=2)
    """

    dim: int = Field(ge=8, description="Model width: size of the hidden states, at least 8")
    hidden_dim: int = Field(ge=8, description="Width of the hidden layer of each MLP, at least 8")
    num_layers: int = Field(ge=1, description="Number of transformer layers, at least 1")
    num_heads: int = Field(ge=1, description="Number of query heads; dim must be a multiple")
    num_kv_heads: int = Field(ge=1, description="Number of key and value heads, shared by groups of query heads")
    tie_embeddings: bool = Field(
        default=True, description="Use one matrix for the input embeddings and the output layer: fewer parameters"
    )


class Optim(StageConfig):
    """AdamW with linear warm-up, then cosine decay to `final_lr_share` of the peak (Loshchilov and Hutter, 2019).

    Example:
        >>> Optim(lr=2e-4, warmup_steps=20)
    """

    lr: float = Field(
        default=1e-3, gt=0, le=1, description="Peak learning rate of the schedule, reached after the warm-up, at most 1"
    )
    final_lr_share: float = Field(
        default=0.05, ge=0, le=1, description="Learning rate after the last step, as a fraction of lr, 0 to 1"
    )
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="Number of steps of linear warm-up to the peak learning rate; default: a tenth of all, at most 50",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay rate of AdamW's first moment, 0 to below 1")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay rate of AdamW's second moment, 0 to below 1")
    weight_decay: float = Field(
        default=0.1, ge=0, description="Decoupled weight decay of matrices; vectors such as norm weights have none"
    )
    clip: float = Field(
        default=1.0, gt=0, description="Maximum norm of the gradient; a larger gradient is scaled down to this norm"
    )

    @property
    def num_warmup_steps(self) -> int:
        """Number of warm-up steps; `adapt` chooses the number where the recipe does not set warmup_steps."""
        assert self.warmup_steps is not None, "open settings are chosen before the first step"
        return self.warmup_steps


class Parallel(StageConfig):
    """Device and layout of the processes under torchrun; by default all processes are data-parallel.

    Example: `torchrun --nproc-per-node 8 --no-python puna sft --parallel.tensor 2 ...`
    """

    data: int | None = Field(
        default=None,
        ge=1,
        description="Number of data-parallel ranks; default: all processes that the other dimensions leave",
    )
    tensor: int = Field(
        default=1, ge=1, description="Number of tensor-parallel ranks, which divide heads, MLPs and the vocabulary"
    )
    context: int = Field(
        default=1, ge=1, description="Number of context-parallel ranks, which divide the tokens of each batch"
    )
    pipeline: int = Field(default=1, ge=1, description="Number of pipeline stages, which divide the layers")
    device: DeviceName = Field(
        default="auto", description="Device on which each process computes; auto takes a GPU if there is one"
    )


Target = Literal[
    "all", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"
]  # fmt: skip


class Adapter(StageConfig):
    """A LoRA adapter (Hu et al., 2021, arXiv 2106.09685) beside frozen weights, which may be quantized.

    Example:
        >>> Adapter(rank=16, alpha=32.0, targets=["q_proj", "v_proj"])
    """

    init_from: Path | None = Field(
        default=None,
        serialization_alias="start",
        description="Adapter whose weights, rank and targets training begins with; default: a new adapter",
    )
    targets: list[Target] = Field(
        default=["all"],
        min_length=1,
        description="Matrices with LoRA weights, such as q_proj; all: every matrix of the layers, without lm_head",
    )
    rank: int = Field(
        default=16, ge=1, le=4096, description="LoRA rank, 1 to 4,096; a larger rank has more trained parameters"
    )
    alpha: float = Field(
        default=32.0, gt=0, le=1e6, description="LoRA scaling: the update is multiplied by alpha / rank"
    )
    rank_stabilized: bool = Field(
        default=False, description="Scale the LoRA update by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)"
    )
    dora: bool = Field(
        default=False, description="Train the magnitude of each weight row apart from its direction (DoRA)"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout probability on the inputs of the LoRA matrices, 0 to below 1"
    )

    @model_validator(mode="after")
    def _is_new_or_goes_on(self) -> Self:
        settings = sorted(self.model_fields_set - {"init_from", "dropout"})
        if self.init_from is not None and settings:
            raise ValueError(f"no {', '.join(settings)} beside 'init_from': the initial adapter decides them")
        return self


class TrainConfig(StageConfig):
    """Settings of every training stage.

    Example: the table `[sft]` of recipes/own_llama.toml.
    """

    has_preview: ClassVar[bool] = True
    is_parallel: ClassVar[bool] = True
    data: list[Path] = Field(description="Datasets to train on, shuffled together")
    init_from: Path | None = Field(
        default=None,
        serialization_alias="start",
        description="Checkpoint whose weights training begins with; either init_from or size",
    )
    size: str | Size | None = Field(
        default=None,
        description="Size of a new model with random weights: a name such as 1b, or a table of widths",
    )
    tokenizer: Path | None = Field(
        default=None,
        description="Directory or file with the tokenizer of a new model; required with size, refused with init_from",
    )
    adapter: Adapter | None = Field(
        default=None,
        description="Train a LoRA adapter beside the frozen weights of init_from; default: train all weights",
    )
    max_length: int | None = Field(
        default=None,
        ge=16,
        le=131_072,
        serialization_alias="context",
        description="Maximum example length in tokens, 16 to 131,072; default: chosen from the lengths of the data",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Number of tokens per packed batch; more take more memory; default: 4096, fewer for short epochs",
    )
    grad_accumulation: int = Field(
        default=1,
        ge=1,
        serialization_alias="accumulate",
        description="Number of batches per optimizer step; gradients are summed over them",
    )
    steps: int | None = Field(default=None, ge=1, description="Number of optimizer steps; either steps or epochs")
    epochs: float | None = Field(
        default=None, gt=0, description="Number of passes over the data, fractions allowed; either epochs or steps"
    )
    optim: Optim = Field(default=Optim(), description="Settings of the AdamW optimizer and the learning rate schedule")
    precision: Precision = Field(
        default="bfloat16",
        description="Floating-point format of activations and matrix products; trained weights are float32",
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="Recompute each layer in the backward pass: less memory for activations, a third more time",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Random seed of initial weights, shuffling and dropout; equal seeds give equal weights",
    )
    save_minutes: float = Field(
        default=3.0, gt=0, description="Minutes between saved states, from which an interrupted run resumes"
    )
    fresh_identifiers: bool = Field(
        default=False,
        description="Replace the digits of identifiers, such as order numbers, by new random digits in every epoch",
    )
    parallel: Parallel = Field(
        default=Parallel(), description="Device, and number of processes per dimension of parallelism under torchrun"
    )
    validation: list[Path] = Field(
        default=[], description="Datasets that the run never trains on; their mean loss is measured ten times per run"
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of 'steps' and 'epochs'")
        if (self.init_from is None) == (self.size is None):
            raise ValueError("exactly one of 'init_from' (a checkpoint) and 'size' (from scratch)")
        if (self.size is None) != (self.tokenizer is None):
            raise ValueError("'tokenizer' beside 'size', and only there: a checkpoint has its own")
        if self.adapter is not None and self.init_from is None:
            raise ValueError("'adapter' beside 'init_from': an adapter needs the checkpoint that it adapts")
        if self.batch_tokens is not None and self.max_length is not None and self.batch_tokens < self.max_length:
            raise ValueError(f"batch_tokens ({self.batch_tokens}) of at least max_length ({self.max_length})")
        return self

    @property
    def max_example_tokens(self) -> int:
        """The maximum length of an example in tokens; `adapt` chooses it where the recipe does not set max_length."""
        assert self.max_length is not None, "open settings are chosen before the first step"
        return self.max_length

    @property
    def max_batch_tokens(self) -> int:
        """Number of tokens per batch; `adapt` chooses the number where the recipe does not set batch_tokens."""
        assert self.batch_tokens is not None, "open settings are chosen before the first step"
        return self.batch_tokens

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the activations."""
        return torch_dtype(self.precision)


class PreferenceOptim(Optim):
    """AdamW with the learning rate of DPO in the Llama 3 paper (arXiv 2407.21783, section 4.1.4).

    Example: see `Optim`.
    """

    lr: float = Field(
        default=1e-5, gt=0, le=1, description="Peak learning rate of the schedule, reached after the warm-up, at most 1"
    )


class PreferenceConfig(TrainConfig):
    """Settings of the two stages that train on preferences, dpo and reward.

    Example: the table `[dpo]` of recipes/preferences.toml.
    """

    # The field of a frozen model may have a narrower type than the field of the parent.
    optim: PreferenceOptim = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=PreferenceOptim(), description="Settings of the AdamW optimizer and the learning rate schedule"
    )
    strengths: list[Strength] = Field(
        default=["significantly better", "better"],
        description="Strengths of the preferences to train on; unknown strengths and edited answers always count",
    )

    @model_validator(mode="after")
    def _leaves_identifiers(self) -> Self:
        if self.fresh_identifiers:
            raise ValueError("no fresh_identifiers: answers are compared as they were judged")
        return self
