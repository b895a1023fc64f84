"""The network: equal to transformers' in every setting, blind across packed documents, exact in its sizes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from puna.model.attend import attend_causally, packed_attend
from puna.model.config import SIZES, LlamaConfig, RopeScaling
from puna.model.gradients.blocks import attend_in_blocks, causal_blocks
from puna.model.gradients.operations import linear, rms_norm, swiglu
from puna.model.llama import Llama
from puna.pipeline.errors import ConfigError

TINY = LlamaConfig(
    dim=48, hidden_dim=80, head_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=101, max_context=131_072
)
SCALING_31 = RopeScaling(8.0, 1.0, 4.0, 8192)
SCALING_32 = RopeScaling(32.0, 1.0, 4.0, 8192)


def random_llama(config: LlamaConfig = TINY, seed: int = 0) -> Llama:
    """Weights large enough that a wrong detail shows in the logits."""
    model = Llama(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return model.eval()


def random_tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def logits_of(model: Llama, tokens: torch.Tensor, *, first: int = 0, **options: Any) -> torch.Tensor:
    positions = torch.arange(first, first + len(tokens))
    with torch.no_grad():
        return model.logits(model(tokens, positions, packed_attend([len(tokens)]), **options))


def as_transformers(model: Llama) -> transformers.LlamaForCausalLM:
    """The same weights in transformers' own class, configured by hand."""
    config, scaling = model.config, model.config.rope_scaling
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if scaling:
        rope |= {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor}
        rope |= {"high_freq_factor": scaling.high_freq_factor}
        rope |= {"original_max_position_embeddings": scaling.original_max_context}
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            head_dim=config.head_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_context,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    state = {name if name.startswith("lm_head") else f"model.{name}": x for name, x in model.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, SCALING_31, SCALING_32])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_logits_equal_those_of_transformers_near_and_far(tied: bool, scaling: RopeScaling | None, num_kv_heads: int):
    model = random_llama(replace(TINY, tie_embeddings=tied, rope_scaling=scaling, num_kv_heads=num_kv_heads))
    theirs, tokens = as_transformers(model), random_tokens(40)
    for first in (0, 8190, 130_000):
        with torch.no_grad():
            expected = theirs(tokens[None], position_ids=torch.arange(first, first + 40)[None]).logits[0]
        assert expected.std() > 0.5
        torch.testing.assert_close(logits_of(model, tokens, first=first), expected, atol=1e-4, rtol=0)


def test_logits_equal_those_of_transformers_in_a_document_longer_than_the_old_context():
    model = random_llama(replace(TINY, num_layers=1, num_heads=2, num_kv_heads=1, rope_scaling=SCALING_31))
    tokens = random_tokens(8300)
    with torch.no_grad():
        expected = as_transformers(model)(tokens[None], logits_to_keep=200).logits[0]
    torch.testing.assert_close(logits_of(model, tokens)[-200:], expected, atol=1e-4, rtol=0)


def test_scaling_changes_the_logits_of_far_tokens():
    plain, scaled = random_llama(), random_llama(replace(TINY, rope_scaling=SCALING_31))
    tokens = random_tokens(300)
    assert (logits_of(plain, tokens) - logits_of(scaled, tokens)).abs().max() > 1e-2


def test_a_document_does_not_see_what_is_packed_beside_it():
    model = random_llama()
    lengths = [30, 250, 1, 70]
    positions = torch.cat([torch.arange(length) for length in lengths])
    document = random_tokens(250, seed=1)

    def packed(seed: int, attend: Any) -> torch.Tensor:
        tokens = torch.cat([random_tokens(30, seed), document, random_tokens(71, seed + 1)])
        with torch.no_grad():
            return model.logits(model(tokens, positions, attend))[30:280]

    attend = packed_attend(lengths)
    assert torch.equal(packed(7, attend), packed(8, attend))
    torch.testing.assert_close(packed(7, attend), logits_of(model, document), atol=1e-5, rtol=0)
    unpacked = packed_attend([sum(lengths)])
    assert (packed(7, unpacked) - packed(8, unpacked)).abs().max() > 1e-2


def test_a_token_does_not_see_later_ones():
    model, tokens = random_llama(), random_tokens(400)
    changed = torch.cat([tokens[:250], random_tokens(150, seed=5)])
    assert torch.equal(logits_of(model, tokens)[:250], logits_of(model, changed)[:250])


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 191, 192, 193, 500])
def test_attention_in_blocks_equals_torchs_own_in_values_and_gradients(length: int, num_kv_heads: int):
    generator = torch.Generator().manual_seed(0)
    shapes = [(length, 4, 16), (length, num_kv_heads, 16), (length, num_kv_heads, 16)]
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    upstream = torch.randn(shapes[0], generator=generator)
    slow, fast = attend_causally(*inputs), attend_in_blocks(*inputs, causal_blocks([length], torch.float32))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operations_have_the_gradients_that_autograd_derives_from_their_formulas(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in [(9, 16), (9, 16), (24, 16), (16,)]]
    x, up, matrix, scale = (each.requires_grad_() for each in given)
    upstream = [torch.randn(shape, generator=generator).to(dtype) for shape in [(9, 24), (9, 16), (9, 16)]]
    x_T, up_T = x.to(dtype), up.to(dtype)
    ours = [linear(x_T, matrix), rms_norm(x_T, scale, 1e-5), swiglu(x_T, up_T)]
    normal = x_T.float() * (x_T.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    theirs = [x_T @ matrix.to(dtype).T, normal.to(dtype) * scale.to(dtype), x_T * x_T.sigmoid() * up_T]
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    for one, other, gradient in zip(ours, theirs, upstream, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
        found, expected = (
            torch.autograd.grad(each, given, gradient, allow_unused=True, retain_graph=True) for each in (one, other)
        )
        assert [each is None for each in found] == [each is None for each in expected]
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value, wanted, atol=tolerance, rtol=tolerance)


def test_short_documents_that_share_a_block_attend_as_if_alone():
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 50, 1, 100, 60, 250, 20, 30, 192, 1]
    inputs = [torch.randn(sum(lengths), heads, 16, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(sum(lengths), 4, 16, generator=generator)
    packed = packed_attend(lengths)(0, *inputs)
    alone = torch.cat([attend_causally(*x) for x in zip(*(x.split(lengths) for x in inputs), strict=True)])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad(packed, inputs, upstream), torch.autograd.grad(alone, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("length", [50, 2100])
def test_bfloat16_activations_stay_close_to_float32_and_give_float32_logits(length: int):
    model, tokens = random_llama(), random_tokens(length)
    exact, rounded = logits_of(model, tokens), logits_of(model, tokens, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    error = (rounded - exact).std() / exact.std()
    assert 0 < error < 0.05


def test_gradients_are_the_same_to_the_bit_in_every_run():
    model = random_llama()
    tokens = random_tokens(300) % 7  # rows of the embedding that many tokens share

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        hidden = model(tokens, torch.arange(300), packed_attend([100, 200]), dtype=torch.bfloat16)
        torch.nn.functional.cross_entropy(model.logits(hidden), tokens).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    first, second = gradients(), gradients()
    assert len(first) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("8b", 8_030_261_248),
        ("70b", 70_553_706_496),
        ("405b", 405_853_388_800),
        ("1b", 1_235_814_400),
        ("3b", 3_212_749_824),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(size: str, count: int):
    assert SIZES[size].num_parameters == count


@pytest.mark.parametrize("size", ["8b", "70b", "405b", "1b", "demo-student"])
def test_the_network_has_as_many_parameters_as_its_config_says(size: str):
    with torch.device("meta"):
        model = Llama(SIZES[size])
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[size].num_parameters


def test_a_seed_determines_all_weights():
    models = [Llama(TINY) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.initialize(seed)
    first, same, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    attention = models[0].layers[0].get_submodule("self_attn")
    q_std, o_std = (attention.get_submodule(name).weight.std().item() for name in ("q_proj", "o_proj"))
    assert q_std == pytest.approx(0.02, rel=0.1) and o_std == pytest.approx(0.01, rel=0.1)


def test_above_the_first_layer_heads_begin_by_writing_what_they_read():
    model, seen = Llama(TINY), torch.randn(200, TINY.dim)
    model.initialize(0)
    groups = TINY.num_heads // TINY.num_kv_heads
    for number, layer in enumerate(model.layers):
        attention = layer.get_submodule("self_attn")
        values = attention.get_submodule("v_proj")(seen).view(200, TINY.num_kv_heads, TINY.head_dim)
        written = attention.get_submodule("o_proj")(values.repeat_interleave(groups, dim=1).flatten(1))
        likeness = torch.cosine_similarity(written, seen, dim=-1).mean()
        assert likeness > 0.5 if number else abs(likeness) < 0.1


def test_turning_the_model_to_bfloat16_leaves_far_positions_sharp():
    config = replace(TINY, rope_scaling=SCALING_31)
    model, rounded, tokens = random_llama(config), random_llama(config).to(torch.bfloat16).float(), random_tokens(60)
    positions = torch.arange(60) * 2000
    with torch.no_grad():
        exact, close = (each.logits(each(tokens, positions, packed_attend([60]))) for each in (model, rounded))
    assert (close - exact).std() / exact.std() < 0.03


@pytest.mark.parametrize("change", [{"num_heads": 3}, {"head_dim": 15}, {"dim": 0}, {"rope_theta": float("nan")}])
def test_impossible_sizes_are_refused_by_name(change: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(TINY, **change)
