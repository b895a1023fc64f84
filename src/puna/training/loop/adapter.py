"""Config -> a frozen model with a trainable adapter; a trained adapter -> an artifact."""

from typing import Any

from puna.formats.checkpoint.adapters.adapter import open_adapter, read_lora, read_magnitudes, require_trainable
from puna.formats.checkpoint.adapters.folder import is_adapter
from puna.formats.checkpoint.adapters.save import save_adapter
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.model.adapters.adapted import AdapterShape, add_adapter, attach, set_dropout
from puna.model.llama import Llama
from puna.model.quantization.quantized import schemes_of
from puna.model.quantization.scheme import describe_schemes
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run
from puna.pipeline.storage.records import read_record
from puna.training.loop.optimizer import trained_parameters
from puna.training.settings import TrainConfig

KIND = "adapter"
ORIGIN_NAME = "origin.json"  # what `puna import` knows of the hub


def adapted_start(config: TrainConfig, checkpoint: Checkpoint) -> Llama:
    """Load a frozen checkpoint in the dtype of the activations, or quantized, with an adapter in float32."""
    settings = config.adapter
    assert settings is not None
    model = checkpoint.load(config.dtype)
    if settings.init_from is None:
        stabilized, magnitudes = settings.rank_stabilized, settings.dora
        shape = AdapterShape(settings.targets, settings.rank, settings.alpha, stabilized, magnitudes)
        add_adapter(model, shape, seed=config.seed)
    else:
        if not is_adapter(settings.init_from):
            raise ConfigError(
                f"adapter.init_from = {settings.init_from}",
                expected="the directory of an adapter",
                hint="init_from takes checkpoints",
            )
        adapter = open_adapter(settings.init_from)
        require_trainable(adapter, checkpoint.config)
        attach(model, read_lora(adapter), read_magnitudes(adapter), is_rank_stabilized=adapter.is_rank_stabilized)
    set_dropout(model, settings.dropout)
    return model


def write_adapter(config: TrainConfig, run: Run, model: Llama) -> None:
    """Write the adapter; its config names the base checkpoint by name on the hub, or by folder name.

    The path to the base stands in the manifest's inputs: equal adapters are equal wherever the base lies.
    """
    assert config.init_from is not None
    origin = config.init_from / ORIGIN_NAME
    imported = (
        read_record(origin, dict[str, Any], expected="the origin as 'import' writes it") if origin.is_file() else {}
    )
    save_adapter(run.output, model, base_name=str(imported.get("hub") or config.init_from.resolve().name))
    run.kind = KIND


def describe_training(model: Llama) -> str:
    """Describe the number of trained and frozen parameters, and the format of the frozen ones."""
    num_trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
    num_frozen = model.config.num_parameters
    kept = describe_schemes(schemes_of(model)) or str(model.dtype).removeprefix("torch.")
    share = num_trained / num_frozen
    return (
        f"an adapter of {num_trained:,} parameters beside {num_frozen:,} ({share:.2%}) that stay as they are, in {kept}"
    )
