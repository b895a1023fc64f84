"""The compiled kernels: equal to their twins in torch, and a token's result the same whatever it is computed with."""

import itertools
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.runners.native_runner import NativeRunner
from puna.inference.engine.runners.runner import Span
from puna.inference.engine.runners.torch_pages import TorchPages
from puna.inference.engine.runners.torch_runner import TorchRunner
from puna.model.config import SIZES, LlamaConfig
from puna.model.kernels import reference
from puna.model.kernels.build import find_compiler, library
from puna.model.kernels.memory import MAPPINGS
from puna.model.kernels.native import Kernels, Layer, Network, Packed, Pages, Sizes, packed_group, unpacked
from puna.model.kernels.native import shared_kernels as find_kernels
from puna.model.kernels.threads import cpu_limit
from puna.model.llama import Llama
from puna.model.quantization.quantized import pack as pack_words
from puna.model.rope import rope_frequencies
from puna.pipeline.errors import KernelError

# What tells one token alone, the tiles of vectors, those of a matrix unit and the blocks of many tokens apart.
BATCHES = (1, 2, 3, 5, 6, 7, 12, 13, 16, 17, 33, 255, 257)


def kernels() -> Kernels:
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    found = find_kernels()
    assert found is not None, "the kernels do not compile; the log says why"
    return found


def new_weight(rows: int, cols: int, groups: int, bits: int, dtype: torch.dtype, seed: int = 0):
    """Return signed values [rows, cols] and scales [rows, groups]."""
    generator = torch.Generator().manual_seed(seed)
    most = 2 ** (bits - 1) - 1
    values = torch.randint(-most, most + 1, (rows, cols), generator=generator)
    return values, (torch.rand(rows, groups, generator=generator) + 0.1).to(dtype)


def pack(values: torch.Tensor, scales: torch.Tensor, bits: int) -> Packed:
    return kernels().pack(pack_words(values, bits), scales, bits=bits, cols=values.shape[1])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 100),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 32, 56, 128, 256]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_weights_are_laid_out_as_the_twin_does(rows, groups, group, bits, dtype):
    values, scales = new_weight(rows, group * groups, groups, bits, dtype)
    packed = pack(values, scales, bits)
    expected = reference.pack(values, scales, packed.group, bits, is_unsigned="VNNI" in kernels().instructions)
    assert torch.equal(packed.memory, expected.flatten())


def test_weights_that_are_packed_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch):
    values, scales = new_weight(200, 64, 2, 4, torch.bfloat16)
    whole = pack(values, scales, 4).memory
    monkeypatch.setattr("puna.model.kernels.native.PACKED_AT_ONCE", 64 * 32)
    assert torch.equal(pack(values, scales, 4).memory, whole)


def resident(path: Path) -> int:
    """Return how many KiB of a mapped file are in this process's memory."""
    mapping = MAPPINGS.with_name("smaps").read_text().partition(str(path))[2]
    return int(mapping.partition("Rss:")[2].split()[0])


@pytest.mark.skipif(not MAPPINGS.exists(), reason="only Linux tells what is mapped")
def test_packed_words_of_a_file_leave_the_memory_and_other_words_stay(tmp_path: Path):
    values, scales = new_weight(512, 2048, 1, 8, torch.float32)
    words = pack_words(values, 8)
    expected = kernels().pack(words, scales, bits=8, cols=2048).memory
    assert torch.equal(words, pack_words(values, 8)), "memory that is no file's keeps what it holds"
    path = tmp_path / "words"
    path.write_bytes(words.numpy().tobytes())
    mapped = torch.from_file(str(path), shared=False, size=words.numel(), dtype=torch.int32).view(words.shape)
    assert torch.equal(mapped, words) and resident(path) == 1024
    assert torch.equal(kernels().pack(mapped, scales, bits=8, cols=2048).memory, expected)
    assert resident(path) == 0
    assert torch.equal(mapped, words), "they come back when they are read"


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 100),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 32, 56, 64, 112, 128, 224, 256]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    num_tokens=st.sampled_from(BATCHES[:-2]),
)
def test_products_with_int4_and_int8_weights_equal_the_twins(rows, groups, group, bits, dtype, num_tokens):
    values, scales = new_weight(rows, group * groups, groups, bits, dtype)
    packed = pack(values, scales, bits)
    x_TD = torch.randn(num_tokens, group * groups, generator=torch.Generator().manual_seed(1))
    expected = reference.linear(x_TD, values, scales, packed.group)
    torch.testing.assert_close(kernels().linear(packed, x_TD), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (33, 64), (70, 250), (64, 7), (160, 96)])
def test_products_with_bfloat16_weights_equal_the_twins(rows: int, cols: int):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=generator).bfloat16()
    for num_tokens in BATCHES:
        x_TD = torch.randn(num_tokens, cols, generator=generator)
        expected = x_TD.bfloat16().float() @ weight.float().T
        torch.testing.assert_close(kernels().linear(unpacked(weight), x_TD), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tokens_product_is_the_same_to_the_last_bit_whatever_else_is_multiplied(bits: int):
    x_TD = torch.randn(max(BATCHES), 256, generator=torch.Generator().manual_seed(0))
    packed = pack(*new_weight(70, 256, 2, bits, torch.bfloat16), bits)
    together = kernels().linear(packed, x_TD)
    for num_tokens in BATCHES:
        assert torch.equal(kernels().linear(packed, x_TD[:num_tokens]), together[:num_tokens])


def test_a_number_that_is_none_reaches_the_result_of_its_token_alone():
    packed = pack(*new_weight(40, 64, 1, 4, torch.float32), 4)
    x_TD = torch.randn(20, 64)
    x_TD[3, 7], x_TD[11, 0] = float("nan"), float("inf")
    is_finite = kernels().linear(packed, x_TD).isfinite().all(1)
    assert is_finite.tolist() == [token not in (3, 11) for token in range(20)]


def test_groups_that_cannot_be_cut_into_eights_are_refused():
    assert (packed_group(224, 224), packed_group(96, 32), packed_group(100, 100)) == (112, 32, None)
    with pytest.raises(KernelError, match="100 inputs in 1 groups"):
        pack(*new_weight(8, 100, 1, 8, torch.float32), 8)


def attention_network(head_dim: int, num_heads: int, num_kv_heads: int) -> Network:
    sizes = Sizes(1, num_heads * head_dim, 32, num_heads, num_kv_heads, head_dim, 8, 1e-5)
    config = replace(SIZES["1b"], head_dim=head_dim)
    unused, norm = unpacked(torch.zeros(8, 8).bfloat16()), torch.zeros(1)
    layer = Layer(*[unused] * 7, attention_norm=norm, mlp_norm=norm)
    return Network(sizes, [layer], embedding=unused, head=unused, norm=norm, frequencies=rope_frequencies(config))


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(("head_dim", "num_heads", "num_kv_heads"), [(64, 8, 2), (28, 4, 2), (128, 2, 2), (56, 5, 1)])
def test_attention_equals_its_twin_in_one_piece_and_in_many(head_dim, num_heads, num_kv_heads, is_int8):
    network, length = attention_network(head_dim, num_heads, num_kv_heads), 150
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(length, n, head_dim, generator=generator) for n in (num_heads, num_kv_heads, num_kv_heads))
    positions, frequencies = torch.arange(length), network._held[3]
    rotated_q, rotated_k = (reference.rotate(x, positions, frequencies) for x in (q, k))
    expected = torch.stack([reference.attend(rotated_q[t], rotated_k[: t + 1], v[: t + 1]) for t in range(length)])
    table = array("i", [7, 3, 9, 1, 2, 12, 13, 14, 15, 0])

    def attend(cuts: list[int]) -> torch.Tensor:
        pages = Pages(network.sizes, 20, page_len=PAGE_LEN, is_int8=is_int8)
        pieces = []
        for start, end in itertools.pairwise(cuts):
            span = Span(table, start, end - start)
            pieces.append(kernels().attend(network, pages, [span], *(x[start:end].contiguous() for x in (q, k, v))))
        return torch.cat(pieces)

    whole = attend([0, length])
    torch.testing.assert_close(whole, expected, rtol=0, atol=0.03 if is_int8 else 0.015)
    assert torch.equal(attend([0, 1, 2, 50, 51, 64, 130, length]), whole)


def half_model(**changes: int) -> Llama:
    config = LlamaConfig(
        **{"dim": 64, "hidden_dim": 160, "head_dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2} | changes,
        vocab_size=120,
        max_context=256,
        tie_embeddings=True,
    )
    model = Llama(config)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15, generator=torch.Generator().manual_seed(parameter.shape[0]))
    return model.to(torch.bfloat16)


def test_a_networks_step_equals_that_of_torch():
    model, generator = half_model(), torch.Generator().manual_seed(0)
    runners = (
        NativeRunner(model, kernels(), num_pages=40),
        TorchRunner(model.float(), num_pages=40, dtype=torch.float32),
    )
    tables = [array("i", range(index * 10, index * 10 + 10)) for index in range(3)]
    starts, steps = [0, 0, 0], [(37, 1, 90), (1, 1, 1), (5, 60, 1)]
    for counts in steps:
        tokens = torch.randint(120, (sum(counts),), generator=generator).tolist()
        spans = [Span(table, start, count) for table, start, count in zip(tables, starts, counts, strict=True)]
        ours, theirs = (runner.logits(runner.forward(tokens, spans, range(len(tokens)))) for runner in runners)
        assert (ours - theirs).abs().max() < 0.05 * theirs.std()
        starts = [start + count for start, count in zip(starts, counts, strict=True)]


def logits_in_pieces(runner: NativeRunner | TorchRunner, tokens: list[int], cuts: list[int]) -> torch.Tensor:
    table, pieces = array("i", [7, 3, 9, 1, 2, 12, 13, 14]), []
    for start, end in itertools.pairwise(cuts):
        hidden = runner.forward(tokens[start:end], [Span(table, start, end - start)], range(end - start))
        pieces.append(runner.logits(hidden))
    return torch.cat(pieces)


def test_an_int8_cache_gives_nearly_the_same_read_whole_or_in_pieces_by_kernels_or_by_torch():
    model, cuts = half_model(), [0, 30, 31, 32, 90, 100]
    tokens = torch.randint(120, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    floats = {"num_pages": 20, "dtype": torch.float32}
    usual = logits_in_pieces(TorchRunner(half_model().float(), **floats), tokens, [0, 100])
    for runner in (
        TorchRunner(half_model().float(), **floats, is_int8_cache=True),
        NativeRunner(model, kernels(), num_pages=20, is_int8_cache=True),
    ):
        whole, pieces = (logits_in_pieces(runner, tokens, each) for each in ([0, 100], cuts))
        assert 0.02 < (whole - usual).abs().max() / usual.std() < 0.1
        assert (pieces - whole).abs().max() / usual.std() < 1e-5


def test_pages_in_int8_hold_a_position_within_half_a_step_and_a_cleared_one_is_zero():
    config = LlamaConfig(8, 8, 6, 1, 2, 2, vocab_size=8, max_context=64)
    pages = TorchPages(config, 3, dtype=torch.float32, device=torch.device("cpu"), is_int8=True)
    x_TKE = torch.randn(20, 2, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 20)[:, None, None]
    places = torch.arange(12, 32)
    written = pages.write(places, x_TKE)
    assert torch.equal(pages.read(places), written) and torch.equal(pages.read(slice(12, 32)), written)
    steps = x_TKE.abs().amax(-1, keepdim=True) / 127
    assert ((written - x_TKE).abs() <= 0.5001 * steps).all()
    pages.write(places[:1], torch.full((1, 2, 6), torch.nan))
    assert not pages.read(places[:1]).isfinite().any()
    pages.clear(0)
    assert torch.equal(pages.read(slice(0, 16)), torch.zeros(16, 2, 6)) and torch.equal(
        pages.read(places[4:]), written[4:]
    )


# The library for older processors; hardly optimized, since it takes seconds to compile.
FUSED = ("-O1", "-fexpensive-optimizations", "-mavx2", "-mfma")


@pytest.mark.tenth
@pytest.mark.parametrize(("flags", "name"), [(("-O1",), "portable"), (FUSED, "AVX2")])
def test_older_processors_compute_the_same(flags, name, tmp_path, monkeypatch: pytest.MonkeyPatch):
    if flags == FUSED and "AVX" not in kernels().instructions:
        pytest.skip("a processor without AVX2")
    path = library(flags, tmp_path)
    monkeypatch.setattr("puna.model.kernels.native.library", lambda: path)
    older = Kernels(2)
    try:
        assert older.instructions == name
        x_TD = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
        for bits, groups in ((4, 3), (8, 1)):
            values, scales = new_weight(40, 96, groups, bits, torch.float32)
            expected = kernels().linear(pack(values, scales, bits), x_TD)
            packed = older.pack(pack_words(values, bits), scales, bits=bits, cols=96)
            # The same bits, where a * b + c is rounded once.
            rtol, atol = (0, 0) if flags == FUSED else (1e-5, 1e-4)
            torch.testing.assert_close(older.linear(packed, x_TD), expected, rtol=rtol, atol=atol)
    finally:
        older.close()


def test_threads_follow_the_containers_limit(tmp_path):
    assert cpu_limit(tmp_path) >= 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    unlimited = cpu_limit(tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert cpu_limit(tmp_path) == 1 <= unlimited
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu_limit(tmp_path) == 1


def test_without_a_compiler_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("puna.model.kernels.build.COMPILERS", ("no-such-compiler",))
    with pytest.raises(KernelError, match="no C\\+\\+ compiler"):
        library(("-DOTHER",))
