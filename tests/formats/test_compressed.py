"""Quantized checkpoints are compressed-tensors': transformers loads ours, and we load what its library packs."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import compressed_tensors
import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint, write_checkpoint
from puna.model.llama import Llama
from puna.model.quantization.quantized import PackedWeight, round_linears, rounded, schemes_of
from puna.model.quantization.scheme import FP8, INT8, Scheme
from puna.testing.tiny_checkpoint import (
    CONFIG,
    TOKENS,
    WEIGHTS,
    edit_json,
    logits_of,
    random_llama,
    save_quantized,
    tokenizer,
)

INT4 = Scheme("int", 4, 32)
LAYERS = "layers."
INNER_MLP = "layers.1.mlp."
SETTINGS = {
    "int8": {LAYERS: INT8},
    "int8 in groups": {LAYERS: Scheme("int", 8, 64)},
    "int4 a row": {LAYERS: Scheme("int", 4)},
    "int4 in groups of 32": {LAYERS: INT4},
    "int4 in groups of 64": {LAYERS: Scheme("int", 4, 64)},
    "int4 in groups of 128": {LAYERS: Scheme("int", 4, 128)},
    "int4, some layers int8": {LAYERS: INT4, "layers.0.": INT8},
    "some layers alone": {"layers.1.": INT4},
    "fp8": {INNER_MLP: FP8},
    "int8 with its head": {LAYERS: INT8, "lm_head": INT8},
    "int4 with an int8 head": {LAYERS: INT4, "lm_head": INT8},
    "int8 with an int4 head": {LAYERS: INT8, "lm_head": INT4},
    "int8 in groups with an int8 head": {LAYERS: Scheme("int", 8, 64), "lm_head": INT8},
    "int4 in groups with int4 rows": {LAYERS: INT4, "layers.0.": Scheme("int", 4)},
    "int4 in groups of 32 and 64": {LAYERS: INT4, "lm_head": Scheme("int", 4, 64)},
    "fp8 with an int8 head": {INNER_MLP: FP8, "lm_head": INT8},
    "int8 with embeddings": {LAYERS: INT8, "lm_head": INT8, "embed_tokens": INT8},
    "tied, int8": {LAYERS: INT8},
    "tied, int8 with embeddings": {LAYERS: INT8, "embed_tokens": INT8},
}


def quantized_llama(setting: str) -> Llama:
    """Quantize the modules whose paths begin as the setting says; the last that fits wins."""
    model = wide_llama(tied=setting.startswith("tied"))
    for path, module in list(model.named_modules()):
        scheme = next((each for start, each in reversed(SETTINGS[setting].items()) if path.startswith(start)), None)
        if scheme and type(module).__name__ in ("Linear", "Embedding"):
            model.set_submodule(path, rounded(module, scheme))  # type: ignore[arg-type]
    return model


def wide_llama(*, tied: bool) -> Llama:
    config = replace(random_llama(tied=tied).config, dim=128, hidden_dim=256, head_dim=32, num_layers=3)
    model = Llama(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1, generator=generator)
    return model.eval()


def transformers_logits(path: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    with torch.no_grad():
        return theirs(TOKENS[None]).logits[0].float()


# What we write


@pytest.mark.parametrize("setting", SETTINGS)
def test_transformers_computes_the_same_from_what_we_write(tmp_path: Path, setting: str):
    model = quantized_llama(setting)
    save_checkpoint(tmp_path, model, tokenizer())
    # Activations that lie between two float8 numbers may fall to either side, here or there.
    tolerance = 0.1 if "fp8" in setting else 1e-4
    torch.testing.assert_close(transformers_logits(tmp_path), logits_of(model), atol=tolerance, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_quantized_model_survives_writing_and_loading(tmp_path: Path, setting: str):
    model = quantized_llama(setting)
    save_checkpoint(tmp_path, model, tokenizer(), shard_bytes=100_000)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.is_quantized and checkpoint.config == model.config
    assert checkpoint.schemes == schemes_of(model)
    loaded = checkpoint.load()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), loaded.state_dict()[name].float()), name
    halved = checkpoint.load(torch.bfloat16)
    assert halved.dtype == torch.bfloat16 and schemes_of(halved) == schemes_of(model)
    for path in checkpoint.schemes:
        assert halved.get_submodule(path).weight_scale.dtype == model.get_submodule(path).weight_scale.dtype
    # Written again they are the same files, and as floats they compute the same.
    again, floats = tmp_path / "again", tmp_path / "floats"
    again.mkdir()
    save_checkpoint(again, loaded, tokenizer(), shard_bytes=100_000)
    assert (again / CONFIG).read_bytes() == (tmp_path / CONFIG).read_bytes()
    floats.mkdir()
    write_checkpoint(floats, checkpoint.source(), dtype=torch.float32)
    if "fp8" not in setting:  # whose activations are rounded too
        torch.testing.assert_close(logits_of(Checkpoint.open(floats).load()), logits_of(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("setting", [name for name in SETTINGS if "tied" not in name])
def test_transformers_never_unpacks_wrong_weights_without_a_word(tmp_path: Path, setting: str):
    model = quantized_llama(setting)
    save_checkpoint(tmp_path, model, tokenizer())
    unpacked = transformers.CompressedTensorsConfig(dequantize=True)
    schemes = set(schemes_of(model).values())
    if len({(each.kind, each.bits) for each in schemes}) > 1 or len({each.group_size for each in schemes} - {None}) > 1:
        with pytest.raises(RuntimeError, match="conversion of the weights"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=unpacked)
        return
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=unpacked
    )
    with torch.no_grad():
        logits = theirs(TOKENS[None]).logits[0]
    # Weights are unpacked to the dtype of their scales, bfloat16 for groups; activations are not rounded to float8.
    assert (logits - logits_of(model)).std() < (0.05 if "fp8" in setting else 0.01) * logits.std()


def test_words_are_stored_as_compressed_tensors_packs_them_and_stay_mapped(tmp_path: Path):
    model = quantized_llama("int4 in groups of 32")
    save_checkpoint(tmp_path, model, tokenizer())
    name = "model.layers.0.mlp.down_proj.weight_packed"
    checkpoint = Checkpoint.open(tmp_path)
    stored = checkpoint.layout[name]
    assert stored.shape == (128, 32) and stored.dtype == "I32"
    assert checkpoint.layout[name.replace("packed", "scale")].dtype == "BF16"
    raw = stored.file.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0] + stored.start
    words = struct.unpack("<32I", raw[start : start + 128])
    layer = model.get_submodule("layers.0.mlp.down_proj")
    scale = layer.weight_scale[0].float().repeat_interleave(32)
    first_row = [(word >> shift & 15) - 8 for word in words for shift in range(0, 32, 4)]
    assert torch.equal(torch.tensor(first_row) * scale, layer.dequantize()[0])
    loaded = checkpoint.load().get_submodule("layers.0.mlp.down_proj")
    assert str(stored.file) in Path("/proc/self/maps").read_text() and isinstance(loaded, PackedWeight)


def test_the_config_names_what_stays_as_it_is(tmp_path: Path):
    save_checkpoint(tmp_path, quantized_llama("fp8"), tokenizer())
    told = json.loads((tmp_path / CONFIG).read_text())["quantization_config"]
    assert told["format"] == "float-quantized" and told["config_groups"]["group_0"]["targets"] == ["Linear"]
    kept = {"lm_head", "model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj", "model.layers.1.self_attn.q_proj"}
    assert kept <= set(told["ignore"]) and "model.layers.1.mlp.up_proj" not in told["ignore"]


def test_embeddings_in_a_scheme_of_their_own_are_not_said_to_load_elsewhere(tmp_path: Path):
    model = wide_llama(tied=True)
    round_linears(model, INT4)
    model.set_submodule("embed_tokens", rounded(model.embed_tokens, INT8))
    save_checkpoint(tmp_path, model, tokenizer())
    assert "dequantize" not in json.loads((tmp_path / CONFIG).read_text())["quantization_config"]
    assert torch.equal(logits_of(Checkpoint.open(tmp_path).load()), logits_of(model))
    # It says so itself. Asked to unpack them while it loads, it would take one scheme for both.
    with pytest.raises(AttributeError, match="weight"):
        transformers_logits(tmp_path)


# What others write


def by_compressed_tensors(path: Path, model: Llama, args: dict, *, targets: list[str], ignore: list[str]) -> None:
    """Store a model as compressed-tensors' own code rounds and packs it, with the config that it writes."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    save_checkpoint(path, model, tokenizer())
    weights_args = QuantizationArgs(**args)
    tensors = load_file(path / WEIGHTS)
    kept = [each.removeprefix("re:").strip(".*") for each in ignore]
    for name in [name for name in tensors if "_proj" in name and not any(each in name for each in kept)]:
        weight = tensors.pop(name)
        groups = weight.unflatten(1, (-1, args.get("group_size") or weight.shape[1]))
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), weights_args)
        scale = scale.bfloat16()
        values = quantize(weight, scale.float(), zero, weights_args, dtype=torch.int8)
        base = name.removesuffix("weight")
        tensors[f"{base}weight_packed"] = pack_to_int32(values, args["num_bits"])
        tensors[f"{base}weight_scale"] = scale
        tensors[f"{base}weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    scheme = QuantizationScheme(targets=targets, weights=weights_args)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", quantization_status="compressed", ignore=ignore
    )
    told = config.model_dump(mode="json") | {"version": compressed_tensors.__version__, "sparsity_config": {}}
    told["transform_config"] = {}
    edit_json(path / CONFIG, lambda raw: raw.update(quantization_config=told))


GROUPS_OF_128 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
OTHERS = {
    "int4 in groups of 128": (GROUPS_OF_128, ["Linear"], ["lm_head"]),
    "int4 with columns ordered while calibrating": (GROUPS_OF_128 | {"actorder": "weight"}, ["Linear"], ["lm_head"]),
    "int8 a row": ({"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}, ["Linear"], ["lm_head"]),
    "some modules by a pattern": (GROUPS_OF_128, [r"re:.*mlp\.(gate|up|down)_proj$"], ["lm_head", "self_attn"]),
    "all but some by name": (GROUPS_OF_128, ["Linear"], ["lm_head", "model.layers.1.self_attn.q_proj"]),
    "an ignored pattern": (GROUPS_OF_128, ["Linear"], ["lm_head", "re:.*self_attn.*"]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_we_compute_what_transformers_does_from_what_others_pack(tmp_path: Path, case: str):
    args, targets, ignore = OTHERS[case]
    by_compressed_tensors(tmp_path, wide_llama(tied=False), args, targets=targets, ignore=[*ignore])
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.is_quantized
    torch.testing.assert_close(logits_of(checkpoint.load()), transformers_logits(tmp_path), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_in_other_dtypes_are_read_as_they_are(tmp_path: Path, dtype: torch.dtype):
    save_checkpoint(tmp_path, quantized_llama("int4 in groups of 32"), tokenizer())
    tensors = load_file(tmp_path / WEIGHTS)
    scales = {name: tensor.to(dtype) * 1.001 for name, tensor in tensors.items() if name.endswith("weight_scale")}
    save_file(tensors | scales, tmp_path / WEIGHTS, metadata={"format": "pt"})
    model = Checkpoint.open(tmp_path).load()
    assert model.get_submodule("layers.0.mlp.up_proj").weight_scale.dtype == dtype
    torch.testing.assert_close(logits_of(model), transformers_logits(tmp_path), atol=1e-4, rtol=0)


def test_our_words_are_those_of_compressed_tensors(tmp_path: Path):
    save_quantized(tmp_path, scheme=Scheme("int", 4, 16))
    for path, module in Checkpoint.open(tmp_path).load().named_modules():
        if isinstance(module, PackedWeight):
            values = module.dequantize() / module.weight_scale.float().repeat_interleave(16, dim=1)
            assert torch.equal(pack_to_int32(values.round().to(torch.int8), 4), module.weight_packed), path
