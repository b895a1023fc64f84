"""GPTQ is what its definition says, column by column, and leaves less error than rounding to the nearest value."""

import io

import pytest
import torch
from rich.console import Console

from puna.conversion.compression import rounding
from puna.conversion.compression.calibrate import round_by_calibration
from puna.conversion.compression.rounding import best_scale, damped, gptq, nearest
from puna.model.attend import packed_attend
from puna.model.llama import Llama
from puna.model.quantization.quantized import (
    QuantizedLinear,
    expand_scale,
    round_values,
    rounded,
    schemes_of,
    widest_scale,
)
from puna.model.quantization.scheme import INT8, Scheme
from puna.pipeline.errors import CheckpointError
from puna.pipeline.progress import Progress
from puna.testing.tiny_checkpoint import random_llama

GROUPS = [Scheme("int", 4, 16), Scheme("int", 4), Scheme("int", 8)]
PIECES = [[index * 7 % 250 for index in range(start, start + 40)] for start in (0, 11, 23)]


def inputs_and_weight(num_tokens: int = 200, in_dim: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that depend on one another, some far larger than others, as in a network."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(in_dim, in_dim, generator=generator).double() * torch.logspace(-1, 1, in_dim).double()
    x = torch.randn(num_tokens, in_dim, generator=generator).double() @ mixing
    return x, torch.randn(24, in_dim, generator=generator)


def plain_gptq(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The definition: after each column the best change of those left, by the inverse of the Hessian over them."""
    scale = expand_scale(best_scale(weight, scheme), weight.shape[1]).double()
    order = hessian.diagonal().argsort(descending=True).tolist()
    full, weight, rounded = damped(hessian), weight.double().clone(), torch.empty(weight.shape, dtype=torch.double)
    for step, column in enumerate(order):
        left = order[step:]
        inverse = torch.linalg.inv(full[left][:, left])
        rounded[:, column] = round_values(weight[:, column], scale[:, column], scheme) * scale[:, column]
        error = (weight[:, column] - rounded[:, column]) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0]
    return rounded


@pytest.mark.parametrize("scheme", GROUPS, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("block", [128, 7])
def test_gptq_equals_its_definition(scheme: Scheme, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounding, "BLOCK", block)
    x, weight = inputs_and_weight()
    layer = gptq(weight, x.T @ x, scheme)
    torch.testing.assert_close(layer.dequantize().double(), plain_gptq(weight, x.T @ x, scheme), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scheme", GROUPS, ids=lambda scheme: scheme.name)
def test_gptq_leaves_less_error_on_the_calibration_than_the_nearest_values(scheme: Scheme):
    x, weight = inputs_and_weight()
    layers = gptq(weight, x.T @ x, scheme), nearest(weight, scheme)
    by_gptq, by_nearest = ((x @ (layer.dequantize() - weight).double().T).square().sum() for layer in layers)
    assert by_gptq < 0.7 * by_nearest


@pytest.mark.parametrize("scheme", [Scheme("int", 4, 16), Scheme("int", 4)], ids=lambda scheme: scheme.name)
def test_the_best_scale_leaves_less_error_than_the_widest(scheme: Scheme):
    weight = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    best, widest = (expand_scale(find(weight, scheme), 48) for find in (best_scale, widest_scale))
    errors = [(round_values(weight, scale, scheme) * scale - weight).square().sum() for scale in (best, widest)]
    assert errors[0] < 0.95 * errors[1]


def test_inputs_that_are_always_zero_and_a_single_token_are_no_trouble():
    x, weight = inputs_and_weight()
    x[:, 5] = 0
    alone = gptq(weight, x.T @ x, INT8).dequantize()
    assert (alone[:, 5] - weight[:, 5]).abs().max() < 0.05
    one = gptq(weight, x[:1].T @ x[:1], INT8)
    assert one.dequantize().isfinite().all()
    nothing = gptq(weight, torch.zeros(48, 48), INT8)
    assert torch.equal(nothing.weight_packed, nearest(weight, INT8).weight_packed)


def silent_bar() -> Progress:
    return Progress(Console(file=io.StringIO()), 14, "rounding", unit="matrices")


def plain_inputs(model: Llama, path: str) -> torch.Tensor:
    """What reaches a matrix when each text runs alone through the whole model."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for ids in PIECES:
            model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]))
    handle.remove()
    return torch.cat(seen)


def test_each_layer_is_rounded_by_what_the_rounded_layers_before_it_give():
    scheme = Scheme("int", 4, 16)
    schemes = {f"layers.{layer}.mlp.{part}_proj": scheme for layer in (0, 1) for part in ("up", "down")}
    schemes["layers.1.self_attn.o_proj"] = INT8
    model = random_llama()
    round_by_calibration(model, PIECES, schemes, torch.float32, silent_bar())
    assert schemes_of(model) == schemes
    half = random_llama()
    for path in ("layers.0.mlp.up_proj", "layers.0.mlp.down_proj"):
        x = plain_inputs(random_llama(), path)
        half.set_submodule(path, gptq(half.get_submodule(path).weight, x.T @ x, scheme))
    for path in schemes:
        x = plain_inputs(random_llama() if "layers.0" in path else half, path)
        expected = gptq(random_llama().get_submodule(path).weight, x.T @ x, schemes[path])
        layer = model.get_submodule(path)
        assert isinstance(layer, QuantizedLinear)
        # Sums in another order may move a value that lies between two.
        changed = (layer.dequantize() != expected.dequantize()).double().mean()
        assert changed < 0.01, path
        assert (layer.dequantize() != rounded(random_llama().get_submodule(path), schemes[path]).dequantize()).any()


def test_activations_that_are_no_numbers_are_an_error_that_names_the_layer():
    model = random_llama()
    with torch.no_grad():
        model.get_submodule("layers.1.mlp.up_proj").weight[3] = torch.inf
    with pytest.raises(CheckpointError, match="layer 1"):
        round_by_calibration(model, PIECES, {}, torch.float32, silent_bar())
