"""A network and process groups -> the network's local shard: hooks and sharded weights, with the same forward pass.

Order: pipeline stages, tensor parallelism, FSDP. Context parallelism changes no weights; context.py divides tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

from puna.model.kernels.device import choose_device
from puna.model.llama import Block, Llama
from puna.pipeline.errors import ConfigError
from puna.pipeline.run import Run, num_restarts
from puna.training.parallel.pipeline import keep_stage
from puna.training.parallel.process_groups import ProcessGroups
from puna.training.settings import TrainConfig


def init_parallel(config: TrainConfig, run: Run, model: Llama, *, needs_whole_examples: bool) -> ProcessGroups:
    """Join the processes of torchrun and shard `model` in place; a single process changes nothing.

    Raises:
        ConfigError: The objective, adapter or sizes do not fit the layout of the processes.
    """
    if run.is_preview:
        return ProcessGroups(device=choose_device(config.parallel.device))
    groups = ProcessGroups.join(config.parallel, run.rank, run.num_ranks, num_restarts())
    groups.dims.require_fit(model.config, config)
    if groups.world_size > 1 and model.config.is_reward:
        raise ConfigError(f"{groups.world_size} processes for {run.stage}", expected="one process for a reward model")
    if groups.dims.context > 1 and needs_whole_examples:
        raise ConfigError(
            f"parallel.context = {groups.dims.context} for {run.stage}",
            expected="parallel.context = 1, since the loss needs whole examples on one process",
            hint="Divide by parallel.tensor or parallel.pipeline instead",
        )
    if config.adapter is not None and groups.dims.tensor * groups.dims.pipeline > 1:
        raise ConfigError(
            f"parallel = {groups.dims} with an adapter",
            expected="parallel.tensor = 1 and parallel.pipeline = 1 with an adapter",
            hint="Frozen weights are sharded between data and context ranks",
        )
    parallelize(model, groups, config.dtype)
    if groups.world_size > 1:
        run.log(f"{groups.world_size} processes: {groups.dims}")
    return groups


def parallelize(model: Llama, groups: ProcessGroups, dtype: torch.dtype) -> None:
    """Replace the weights of `model` by local shards, in place; trained weights become float32.

    Weights may be memory-mapped: a single block is in memory as a whole at a time.

    Args:
        dtype: Dtype of gathered weights and of matrix products.
    """
    if groups.mesh is None:
        return
    dims = groups.dims
    if dims.pipeline > 1:
        keep_stage(model, groups.local_rank("pipeline"), dims.pipeline)
    # FSDP shards over data x context: all ranks with different tokens.
    weights_mesh = groups.mesh["data", "context"]._flatten("weights") if dims.data * dims.context > 1 else None
    for block in model.layers:
        assert isinstance(block, Block)
        _move(block, groups.device)
        if dims.tensor > 1:
            shard_block(block, groups.mesh["tensor"])
        if weights_mesh:
            _fully_shard(block, weights_mesh, dtype, stays_gathered=dims.pipeline > 1)
    _move(model, groups.device)
    if dims.tensor > 1:
        shard_vocabulary(model, groups.mesh["tensor"])
    if weights_mesh:
        _fully_shard(model, weights_mesh, dtype, stays_gathered=True)
    model.frequencies = model.frequencies.to(groups.device)


def _move(module: nn.Module, device: torch.device) -> None:
    """Move parameters and buffers to the device, trained parameters as float32; DTensors stay."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            dtype = torch.float32 if parameter.requires_grad else parameter.dtype
            parameter.data = parameter.data.to(device, dtype)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def shard_block(block: Block, mesh: DeviceMesh) -> None:
    """Apply tensor parallelism to a block: column-parallel q, k, v, gate and up; row-parallel o and down."""
    attention, mlp = block.self_attn, block.mlp
    for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        _distribute(module, mesh, 0, _replicate_input, _local_output)
    for module in (attention.o_proj, mlp.down_proj):
        _distribute(module, mesh, 1, _shard_input, _all_reduce_output)


def shard_vocabulary(model: Llama, mesh: DeviceMesh) -> None:
    """Shard embeddings and head by rows of the vocabulary; vocab_parallel.py computes losses of a sharded head."""
    if getattr(model.embed_tokens, "weight", None) is not None:
        _distribute(model.embed_tokens, mesh, 0, _replicate_ids, _all_reduce_output)
    if model.lm_head is not None:
        _distribute(model.lm_head, mesh, 0, _replicate_input, _all_reduce_output)


def _distribute(module: nn.Module, mesh: DeviceMesh, dim: int, input_hook: Any, output_hook: Any) -> None:
    """Shard a weight along `dim`; the hooks convert inputs and outputs between tensors and DTensors."""

    def shard(_: str, module: nn.Module, mesh: DeviceMesh) -> None:
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        # Every rank reads the whole tensor from the same file: no communication.
        sharded = distribute_tensor(weight.detach(), mesh, [Shard(dim)], src_data_rank=None)
        module.weight = nn.Parameter(sharded, requires_grad=weight.requires_grad)

    distribute_module(module, mesh, shard, input_hook, output_hook)


def _replicate_input(module: nn.Module, inputs: tuple[torch.Tensor], mesh: DeviceMesh) -> DTensor:
    return DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)


def _replicate_ids(module: nn.Module, inputs: tuple[torch.Tensor], mesh: DeviceMesh) -> torch.Tensor:
    # Later pipeline stages get hidden states, which pass through.
    return inputs[0] if inputs[0].is_floating_point() else _replicate_input(module, inputs, mesh)


def _shard_input(module: nn.Module, inputs: tuple[torch.Tensor], mesh: DeviceMesh) -> DTensor:
    return DTensor.from_local(inputs[0], mesh, [Shard(-1)], run_check=False)


def _local_output(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> torch.Tensor:
    return output.to_local()


def _all_reduce_output(module: nn.Module, output: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    return output.redistribute(placements=[Replicate()]).to_local() if isinstance(output, DTensor) else output


def _fully_shard(module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, *, stays_gathered: bool) -> None:
    """Apply FSDP: float32 shards and gradient sums, gathered weights in `dtype`.

    Args:
        stays_gathered: Whether gathered weights stay in memory until the backward pass.
    """
    # Frozen weights keep their dtype, and LoRA layers round activations themselves.
    rounded = dtype if all(parameter.requires_grad for parameter in module.parameters()) else None
    policy = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32, cast_forward_inputs=False)
    sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not stays_gathered)
    assert isinstance(sharded, FSDPModule)
    # The loss is already divided by the count of the whole step: gradients are sums. Gloo only reduces sums.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def reshard(model: nn.Module) -> None:
    """Free gathered weights after a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
