"""Quantized layers and embeddings compute with the weights that they stand for, whose words lie as they are stored."""

import math

import pytest
import torch

from puna.model.llama import Linear
from puna.model.quantization.float8 import Float8Linear
from puna.model.quantization.quantized import (
    QuantizedLinear,
    pack,
    round_linears,
    round_weight,
    rounded,
    schemes_of,
    unpack,
)
from puna.model.quantization.scheme import FP8, INT8, Scheme
from puna.testing.tiny_checkpoint import logits_of, random_llama

SCHEMES = [INT8, Scheme("int", 8, 16), Scheme("int", 4), Scheme("int", 4, 16)]


def random_layer(scheme: Scheme, in_dim: int = 64) -> QuantizedLinear:
    weight = torch.randn(24, in_dim, generator=torch.Generator().manual_seed(0))
    return QuantizedLinear(*round_weight(weight, scheme), scheme, in_dim)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_rounded_weights_are_within_half_a_step(scheme: Scheme):
    weight = torch.randn(30, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 30)[:, None]
    weight[3] = 0
    layer = QuantizedLinear(*round_weight(weight, scheme), scheme, 64)
    assert layer.weight_scale.shape == (30, scheme.num_groups(64)) and (layer.weight_scale > 0).all()
    assert torch.equal(layer.weight_scale, layer.weight_scale.bfloat16().to(layer.weight_scale.dtype))
    step = layer.weight_scale.float().repeat_interleave(64 // scheme.num_groups(64), dim=1)
    # The scale is rounded to bfloat16, so the greatest weight may lie a little beyond the greatest value.
    beyond = step * 2.0 ** (scheme.bits - 1) * 2**-8
    assert ((layer.dequantize() - weight).abs() <= torch.maximum(step * 0.5001, beyond)).all()
    assert (layer.dequantize()[3] == 0).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("in_dim", [1, 7, 8, 33, 64])
def test_packed_words_hold_every_value_with_the_first_in_the_lowest_bits(in_dim: int, bits: int):
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, in_dim), dtype=torch.int8)
    words = pack(values, bits)
    assert words.shape == (5, math.ceil(in_dim * bits / 32)) and words.dtype == torch.int32
    number = int.from_bytes(words[2].numpy().tobytes(), "little")
    assert [(number >> bits * index) % 2**bits - 2 ** (bits - 1) for index in range(in_dim)] == values[2].tolist()
    assert number >> bits * in_dim == 0
    assert torch.equal(unpack(words, bits, in_dim), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scheme", "in_dim"), [*((scheme, 64) for scheme in SCHEMES), (INT8, 33), (INT8, 40)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 8, 9, 70])
def test_a_quantized_layer_computes_with_the_weight_it_stands_for(
    rows: int, scheme: Scheme, in_dim: int, dtype: torch.dtype
):
    layer = random_layer(scheme, in_dim)
    x = torch.randn(rows, in_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = x.double() @ layer.dequantize().double().T
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, atol=1e-5 if dtype == torch.float32 else 0.06, rtol=0.02)


@pytest.mark.parametrize("scheme", [*SCHEMES, FP8], ids=lambda scheme: scheme.name)
def test_sums_beyond_float16_are_no_trouble(scheme: Scheme):
    linear = Linear(4096, 2)
    torch.nn.init.ones_(linear.weight)
    with torch.no_grad():
        y = rounded(linear, scheme)(torch.full((3, 4096), 2.0, dtype=torch.float16))
    torch.testing.assert_close(y, torch.full((3, 2), 8192.0, dtype=torch.float16), rtol=0.02, atol=0)


def test_a_large_weight_is_multiplied_out_in_parts(monkeypatch: pytest.MonkeyPatch):
    layer, x = random_layer(Scheme("int", 4, 32)), torch.randn(3, 64)
    whole = layer(x)
    monkeypatch.setattr("puna.model.quantization.quantized.BLOCK_VALUES", 64 * 5)
    torch.testing.assert_close(layer(x), whole)
    weight = torch.randn(24, 64)
    parts = round_weight(weight, INT8)
    monkeypatch.undo()
    assert all(torch.equal(one, other) for one, other in zip(parts, round_weight(weight, INT8), strict=True))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_gradients_flow_through_a_quantized_layer_whatever_the_number_of_rows(scheme: Scheme):
    layer = random_layer(scheme)
    for rows in (2, 20):
        x = torch.ones(rows, 64, dtype=torch.bfloat16, requires_grad=True)
        layer(x).sum().backward()
        expected = layer.dequantize().sum(dim=0).expand(rows, 64)
        assert x.grad is not None
        torch.testing.assert_close(x.grad.float(), expected, atol=0.15, rtol=0.02)


def test_quantizing_a_model_keeps_its_logits_and_leaves_embeddings_and_head_alone():
    model = random_llama()
    before = logits_of(model)
    round_linears(model)
    after = logits_of(model)
    assert len(schemes_of(model)) == 14 and 0 < (after - before).std() / before.std() < 0.05
    left = {name for name, _ in model.named_parameters() if "norm" not in name}
    assert left == {"embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_embeddings_stand_for_the_table_that_they_dequantize_to(tied: bool):
    model, plain = random_llama(tied=tied), random_llama(tied=tied)
    model.set_submodule("embed_tokens", rounded(model.embed_tokens, INT8))
    with torch.no_grad():
        plain.embed_tokens.weight.copy_(model.get_submodule("embed_tokens").dequantize())
    torch.testing.assert_close(logits_of(model), logits_of(plain), atol=1e-4, rtol=1e-4)
    assert model.dtype == torch.float32


# float8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float8_layer_rounds_each_row_and_each_token_by_its_own_scale(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator) * torch.logspace(-3, 2, 24)[:, None]
    weight[5] = 0
    x = (torch.randn(9, 64, generator=generator) * torch.logspace(-4, 1, 9)[:, None]).to(dtype)
    x[2] = 0
    layer = Float8Linear.rounded(weight)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.weight_scale.shape == (24, 1)
    y = layer(x)
    assert y.dtype == dtype and y.isfinite().all() and (y[2] == 0).all() and (y[:, 5] == 0).all()
    for token in range(9):
        scale = x[token].float().abs().max() / 448 or 1.0
        seen = (x[token].float() / scale).to(torch.float8_e4m3fn).double() * scale
        expected = layer.dequantize().double() @ seen
        torch.testing.assert_close(y[token].double(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_float8_activations_count_as_1200_at_most():
    layer = Float8Linear.rounded(torch.eye(4))
    x = torch.tensor([[5000.0, 1200.0, 600.0, 1.0], [1000.0, 500.0, 0.0, 0.0]])
    torch.testing.assert_close(
        layer(x)[:, :3], torch.tensor([[1200.0, 1200.0, 600.0], [1000.0, 500.0, 0.0]]), rtol=0.04, atol=0
    )


def test_a_device_that_multiplies_float8_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    layer = Float8Linear.rounded(torch.randn(48, 64, generator=generator))
    x = torch.randn(9, 64, generator=generator).bfloat16()
    x[2], x[3, 5] = 0, float("nan")
    plain = layer(x)
    # torch's product in float8 runs on a CPU too, though not fast.
    monkeypatch.setattr("puna.model.quantization.float8.multiplies_float8", lambda device: True)
    torch.testing.assert_close(
        layer(x), plain, rtol=0.01, atol=0.01 * plain.nan_to_num().abs().max().item(), equal_nan=True
    )
