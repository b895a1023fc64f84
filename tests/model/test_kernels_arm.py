"""The kernels on ARM, by an emulator: the tests of test_kernels.py, and the same bits as on this machine.

Needs a compiler for ARM and an emulator (Debian: g++-aarch64-linux-gnu, qemu-user) and takes minutes.
"""

from array import array
from collections.abc import Iterator

import emulated_kernels
import pytest
import test_kernels
import torch
from emulated_kernels import EmulatedKernels

from puna.inference.engine.runners.native_runner import NativeRunner
from puna.inference.engine.runners.runner import Span
from puna.model.quantization.quantized import pack, round_linears, rounded
from puna.model.quantization.scheme import INT8, Scheme

pytestmark = pytest.mark.slow
# Flags, the processor that is emulated, and the name of the instructions that should be found.
BUILDS = {
    "ARMv8.0": ("-march=armv8-a", "cortex-a57", "portable"),
    "ARMv8.2": ("-march=armv8.2-a+dotprod", "neoverse-n1", "ARM (dot product)"),
    "ARMv8.4 with SVE": ("-mcpu=neoverse-v1", "max,sve256=on", "ARM (dot product)"),
}


@pytest.fixture(scope="module", params=BUILDS)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedKernels]:
    if missing := emulated_kernels.missing_tool():
        pytest.skip(f"no {missing}")
    flags, processor, name = BUILDS[request.param]
    program = emulated_kernels.compile_program([flags], tmp_path_factory.mktemp("arm"))
    kernels = EmulatedKernels(program, processor)
    assert kernels.instructions == name
    yield kernels
    kernels.close()


def test_products_and_steps_equal_their_twins(emulated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(test_kernels, "find_kernels", lambda: emulated)
    test_kernels.test_products_with_int4_and_int8_weights_equal_the_twins()
    for shape in ((33, 64), (70, 250), (64, 7)):
        test_kernels.test_products_with_bfloat16_weights_equal_the_twins(*shape)
    for bits in (4, 8):
        test_kernels.test_a_tokens_product_is_the_same_to_the_last_bit_whatever_else_is_multiplied(bits)
    test_kernels.test_a_number_that_is_none_reaches_the_result_of_its_token_alone()
    test_kernels.test_a_networks_step_equals_that_of_torch()


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("shape", [(64, 8, 2), (28, 4, 2), (128, 2, 2), (56, 5, 1)])
def test_attention_equals_its_twin(emulated, shape, is_int8: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(test_kernels, "find_kernels", lambda: emulated)
    test_kernels.test_attention_equals_its_twin_in_one_piece_and_in_many(*shape, is_int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 64), (8, 256)])
def test_products_have_the_same_bits_as_on_this_machine(emulated, bits: int, group: int, dtype: torch.dtype):
    rows, cols = 70, 512
    values, scales = test_kernels.new_weight(rows, cols, cols // group, bits, dtype)
    x_TD = torch.randn(37, cols, generator=torch.Generator().manual_seed(bits + group))
    words = pack(values, bits)
    here, there = (
        kernels.linear(kernels.pack(words, scales, bits=bits, cols=cols), x_TD)
        for kernels in (test_kernels.kernels(), emulated)
    )
    assert torch.equal(here, there)


@pytest.mark.parametrize("scheme", [None, INT8, Scheme("int", 4, 32)], ids=["bf16", "int8", "int4"])
def test_a_networks_step_is_that_of_this_machine(emulated, scheme: Scheme | None):
    model = test_kernels.half_model()
    if scheme:
        round_linears(model, scheme)
        model.set_submodule("embed_tokens", rounded(model.embed_tokens, INT8))
    runners = [NativeRunner(model, kernels, num_pages=40) for kernels in (test_kernels.kernels(), emulated)]
    generator, tables = torch.Generator().manual_seed(0), [array("i", range(20, 30)), array("i", range(10))]
    starts = [0, 0]
    for counts in [(70, 1), (1, 1), (5, 60)]:
        tokens = torch.randint(120, (sum(counts),), generator=generator).tolist()
        spans = [Span(table, start, count) for table, start, count in zip(tables, starts, counts, strict=True)]
        here, there = (runner.logits(runner.forward(tokens, spans, range(len(tokens)))) for runner in runners)
        # Attention's sums differ in the last bits, which turns some activations' rounding.
        assert (here - there).abs().max() < 0.1 * here.std()
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
