"""A network and a team -> the part of it that this process holds, by hooks and sharded weights; the forward pass stays.

In one order: layers are cut, matrices divided, weights sharded. Context parallelism leaves the network alone:
context.py divides the tokens.
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
from puna.training.objectives.next_token import NextToken
from puna.training.objectives.objective import Objective
from puna.training.parallel.pipeline import cut
from puna.training.parallel.team import Team
from puna.training.settings import TrainConfig


def join(config: TrainConfig, run: Run, objective: Objective, model: Llama) -> Team:
    """Meet the processes that torchrun started and take this one's part of the network; alone it stays as it is."""
    if run.is_preview:
        return Team(device=choose_device(config.parallel.device))
    team = Team.join(config.parallel, run.rank, run.num_ranks, num_restarts())
    team.layout.require_fit(model.config, config)
    if team.size > 1 and model.config.is_reward:
        raise ConfigError(f"{team.size} processes for {run.stage}", expected="one: a reward model is not divided yet")
    if team.layout.context > 1 and getattr(type(objective), "losses", None) is not NextToken.losses:
        raise ConfigError(
            f"parallel.context = {team.layout.context} for {run.stage}",
            expected="parallel.context = 1: its loss needs whole examples in one place",
            hint="Divide by parallel.tensor or parallel.pipeline instead",
        )
    if config.adapter is not None and team.layout.tensor * team.layout.pipeline > 1:
        raise ConfigError(
            f"parallel = {team.layout} with an adapter",
            expected="parallel.tensor = 1 and parallel.pipeline = 1: its matrices are not divided",
            hint="Frozen weights are sharded between data and context ranks",
        )
    parallelize(model, team, config.dtype)
    if team.size > 1:
        run.log(f"{team.size} processes: {team.layout}")
    return team


def parallelize(model: Llama, team: Team, dtype: torch.dtype) -> None:
    """Make of `model`, in place, what this process computes in `dtype`; trained weights become float32.

    Weights may still lie in mapped files: one block of them is in memory as a whole at a time.
    """
    if team.mesh is None:
        return
    layout = team.layout
    if layout.pipeline > 1:
        cut(model, team.place("pipeline"), layout.pipeline)
    # data x context: ranks that see other tokens hold other parts of the same weights.
    weights_mesh = team.mesh["data", "context"]._flatten("weights") if layout.data * layout.context > 1 else None
    for block in model.layers:
        assert isinstance(block, Block)
        _take_in(block, team.device)
        if layout.tensor > 1:
            divide_block(block, team.mesh["tensor"])
        if weights_mesh:
            _shard(block, weights_mesh, dtype, is_kept=layout.pipeline > 1)
    _take_in(model, team.device)
    if layout.tensor > 1:
        divide_vocabulary(model, team.mesh["tensor"])
    if weights_mesh:
        _shard(model, weights_mesh, dtype, is_kept=True)
    model.frequencies = model.frequencies.to(team.device)


def _take_in(module: nn.Module, device: torch.device) -> None:
    """Put what trains into float32 on the device; what is sharded already stays."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            kept = torch.float32 if parameter.requires_grad else parameter.dtype
            parameter.data = parameter.data.to(device, kept)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def divide_block(block: Block, mesh: DeviceMesh) -> None:
    """Give each rank whole heads and a share of the MLP: outputs of the first matrices, inputs of the last."""
    attention, mlp = block.self_attn, block.mlp
    for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        _divide(module, mesh, 0, _takes_all, _gives_share)
    for module in (attention.o_proj, mlp.down_proj):
        _divide(module, mesh, 1, _takes_share, _gives_all)


def divide_vocabulary(model: Llama, mesh: DeviceMesh) -> None:
    """Give each rank the rows of some ids, in the table and in the output matrix; vocabulary.py computes losses so."""
    if getattr(model.embed_tokens, "weight", None) is not None:
        _divide(model.embed_tokens, mesh, 0, _takes_ids, _gives_all)
    if model.lm_head is not None:
        _divide(model.lm_head, mesh, 0, _takes_all, _gives_all)


def _divide(module: nn.Module, mesh: DeviceMesh, dim: int, takes: Any, gives: Any) -> None:
    """Keep this rank's share of a weight along `dim`; `takes` and `gives` make of inputs and outputs what fits it."""

    def divide(_: str, module: nn.Module, mesh: DeviceMesh) -> None:
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        # Each rank has the whole tensor before it, or its file: nothing is sent.
        divided = distribute_tensor(weight.detach(), mesh, [Shard(dim)], src_data_rank=None)
        module.weight = nn.Parameter(divided, requires_grad=weight.requires_grad)

    distribute_module(module, mesh, divide, takes, gives)


def _takes_all(module: nn.Module, inputs: tuple[torch.Tensor], mesh: DeviceMesh) -> DTensor:
    return DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)


def _takes_ids(module: nn.Module, inputs: tuple[torch.Tensor], mesh: DeviceMesh) -> torch.Tensor:
    # A later stage of a pipeline is given hidden states, which pass through.
    return inputs[0] if inputs[0].is_floating_point() else _takes_all(module, inputs, mesh)


def _takes_share(module: nn.Module, inputs: tuple[torch.Tensor], mesh: DeviceMesh) -> DTensor:
    return DTensor.from_local(inputs[0], mesh, [Shard(-1)], run_check=False)


def _gives_share(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> torch.Tensor:
    return output.to_local()


def _gives_all(module: nn.Module, output: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    return output.redistribute(placements=[Replicate()]).to_local() if isinstance(output, DTensor) else output


def _shard(module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, *, is_kept: bool) -> None:
    """Shard weights and moments in float32; products and their gathered weights are in `dtype`, sums in float32.

    `is_kept`: the weights stay gathered from the forward pass to the backward pass.
    """
    # What is frozen has its dtype, and an adapter decides itself where it rounds.
    rounded = dtype if all(parameter.requires_grad for parameter in module.parameters()) else None
    policy = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32, cast_forward_inputs=False)
    sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not is_kept)
    assert isinstance(sharded, FSDPModule)
    # Losses are divided by what the whole step counts, so gradients are sums, not means. Gloo knows no others.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def shard_again(model: nn.Module) -> None:
    """Let go of weights that a forward pass gathered and no backward pass will need."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
