"""Every file of a checkpoint that doesn't fit is refused with an error that names it, before anything is allocated."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.hf import weights
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError
from puna.planning.plan.plan import read_model
from puna.testing.tiny_checkpoint import (
    CONFIG,
    INDEX,
    WEIGHTS,
    edit_header,
    edit_json,
    logits_of,
    save,
    save_quantized,
    tokenizer,
)

# What is refused

Change = dict[str, Any]
ROPE: Change = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE["original_max_position_embeddings"] = 8192
UNSUPPORTED: list[Change] = [
    {"model_type": "mistral"},
    {"architectures": ["LlamaForSequenceClassification"]},
    {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"hidden_act": "gelu"},
    {"pretraining_tp": 2},
    {"rope_scaling": ROPE | {"rope_type": "yarn"}},
    {"rope_scaling": ROPE | {"partial_rotary_factor": 0.5}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": "2"},
    {"num_hidden_layers": 10**9},
    {"num_attention_heads": 3},
    {"head_dim": 2**31 - 2},
    {"hidden_size": True},
    {"rms_norm_eps": -1},
    {"rope_theta": 10**400},
    {"eos_token_id": [1, "2"]},
    {"tie_word_embeddings": "yes"},
]


@pytest.mark.parametrize("change", UNSUPPORTED, ids=str)
def test_a_config_that_we_do_not_compute_is_refused(tmp_path: Path, change: Change):
    save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    edit_json(tmp_path / CONFIG, lambda raw: raw.update(change))
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ud800"]
)
def test_a_config_that_is_no_strict_json_is_refused_by_name(tmp_path: Path, text: str):
    save(tmp_path)
    (tmp_path / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"config\.json (is not valid|holds a) JSON"):
        Checkpoint.open(tmp_path)


def test_code_beside_the_tokenizer_is_refused(tmp_path: Path):
    save(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", lambda raw: raw.update(auto_map={"AutoTokenizer": ["evil.T", None]}))
    with pytest.raises(CheckpointError, match="auto_map"):
        Checkpoint.open(tmp_path).tokenizer()


def test_more_layers_than_the_files_hold_are_refused_before_the_network_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path)
    edit_json(tmp_path / CONFIG, lambda raw: raw.update(num_hidden_layers=3))
    monkeypatch.delattr(weights, "build_empty")
    with pytest.raises(CheckpointError, match=r"layers\.2\.input_layernorm\.weight is missing"):
        Checkpoint.open(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path):
    save(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never read"):
        Checkpoint.open(tmp_path)


NORM = "model.norm.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def rename(old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header.update({new: header.pop(old)})


def turn(header: dict[str, Any]) -> None:
    header[Q_PROJ]["shape"].reverse()


def retype(header: dict[str, Any]) -> None:
    header[NORM] |= {"dtype": "I32"}


def shift(header: dict[str, Any]) -> None:
    header[NORM]["data_offsets"] = [offset - 4 for offset in header[NORM]["data_offsets"]]


def move_boundary(header: dict[str, Any]) -> None:
    """Give the last byte of one tensor to the next."""
    end = header[Q_PROJ]["data_offsets"][1]
    following = next(entry for entry in header.values() if entry.get("data_offsets", [0])[0] == end)
    header[Q_PROJ]["data_offsets"][1] -= 1
    following["data_offsets"][0] -= 1


def inflate(header: dict[str, Any]) -> None:
    header[NORM] |= {"shape": [2**40], "data_offsets": [0, 2**42]}


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (rename(Q_PROJ, "model.layers.1.self_attn.r_proj.weight"), Q_PROJ),
        (rename("model.layers.1.input_layernorm.weight", "x"), "model.layers.1.input_layernorm.weight"),
        (lambda header: header.pop(NORM), ""),
        (lambda header: header.update({"extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "extra"),
        (turn, Q_PROJ),
        (retype, NORM),
        (shift, "starts at byte"),
        (move_boundary, "to fill them"),
        (inflate, NORM),
        (lambda header: header.update({NORM: 7}), NORM),
        (lambda header: header[NORM].update(shape=[-48]), NORM),
        (lambda header: header[NORM].update(shape=[48.0]), NORM),
        (lambda header: header[NORM].update(dtype="F99"), NORM),
    ],
)
def test_a_header_that_does_not_fit_is_refused_by_file_and_tensor(tmp_path: Path, change: Any, tensor: str):
    save(tmp_path)
    edit_header(tmp_path / WEIGHTS, change)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert tensor in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_file_cut_short_anywhere_is_refused_by_name(tmp_path: Path):
    save(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for kept in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / WEIGHTS).write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head\.weight': bytes"):
        (tmp_path / WEIGHTS).write_bytes(whole[:-1])
        Checkpoint.open(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole + b"hidden")
    with pytest.raises(CheckpointError, match="bytes of data"):
        Checkpoint.open(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + whole[8:])
    with pytest.raises(CheckpointError, match="claims a header"):
        Checkpoint.open(tmp_path)


def test_tied_embeddings_with_another_head_beside_them_are_refused(tmp_path: Path):
    model = save(tmp_path)
    edit_json(tmp_path / CONFIG, lambda raw: raw.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        Checkpoint.open(tmp_path).load()
    # What reads tensor by tensor (import, merge, export) would lose the head without a word.
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs.*tie_word_embeddings: false.*keep this head"):
        Checkpoint.open(tmp_path).source()
    head = model.get_submodule("lm_head")
    head.load_state_dict({"weight": model.embed_tokens.weight})
    twice = tmp_path / "twice"
    twice.mkdir()
    save_checkpoint(twice, model, tokenizer())
    edit_json(twice / CONFIG, lambda raw: raw.update(tie_word_embeddings=True))
    assert torch.equal(logits_of(Checkpoint.open(twice).load()), logits_of(model))


# Paths


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/hostname", "sub/x.safetensors", "..", "", "a\0b", "gone"]
)
def test_an_index_cannot_lead_out_of_the_directory(tmp_path: Path, name: str):
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    save(inside, shard_bytes=60_000)
    first = next(inside.glob("*.safetensors"))
    (tmp_path / "outside.safetensors").write_bytes(first.read_bytes())

    def redirect(index: dict[str, Any]) -> None:
        for tensor, file in index["weight_map"].items():
            if file == first.name:
                index["weight_map"][tensor] = name

    edit_json(inside / INDEX, redirect)
    with pytest.raises(CheckpointError, match="is missing" if name == "gone" else "name without a path"):
        Checkpoint.open(inside)


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(tmp_path: Path):
    save(tmp_path, shard_bytes=60_000)
    index = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    other = next(file for file in index.values() if file != index[NORM])
    edit_json(tmp_path / INDEX, lambda raw: raw["weight_map"].update({NORM: other}))
    with pytest.raises(CheckpointError, match=NORM):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "generation_config.json", "tokenizer.json"])
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, name: str):
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    save(inside)
    (inside / name).rename(tmp_path / name)
    (inside / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match="link"):
        Checkpoint.open(inside).tokenizer()


def test_a_file_that_is_no_file_is_refused_without_waiting(tmp_path: Path):
    save(tmp_path)
    (tmp_path / CONFIG).unlink()
    os.mkfifo(tmp_path / CONFIG)
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.open(tmp_path)


def save_cached(repository: Path, folder: str) -> Llama:
    """Save a checkpoint as the Hugging Face cache holds it: links into the blobs of its repository."""
    directory, blobs = repository / folder, repository / "blobs"
    directory.mkdir(parents=True)
    blobs.mkdir()
    model = save(directory)
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path(*[".."] * len(Path(folder).parts), "blobs", str(number)))
    return model


@pytest.mark.parametrize("folder", ["snapshots/0123", "snapshots/0123/original", "snapshots/original"])
def test_the_hugging_face_caches_links_into_blobs_are_followed(tmp_path: Path, folder: str):
    model = save_cached(tmp_path / "models--a--b", folder)
    checkpoint = Checkpoint.open(tmp_path / "models--a--b" / folder)
    assert torch.equal(logits_of(checkpoint.load()), logits_of(model))
    assert checkpoint.tokenizer().encode("fox") == tokenizer().encode("fox")


@pytest.mark.parametrize("folder", ["snapshots/0123/other", "snapshots/0123/original/original", "copies/0123/original"])
def test_links_into_blobs_from_other_folders_are_refused(tmp_path: Path, folder: str):
    save_cached(tmp_path / "models--a--b", folder)
    with pytest.raises(CheckpointError, match="link"):
        Checkpoint.open(tmp_path / "models--a--b" / folder)


@pytest.mark.parametrize("target", ["config.json", "blobs/sub/config.json", "../models--c--d/blobs/config.json"])
def test_a_link_from_a_cached_folder_to_anything_but_its_own_blobs_is_refused(tmp_path: Path, target: str):
    repository = tmp_path / "models--a--b"
    save_cached(repository, "snapshots/0123/original")
    link, elsewhere = repository / "snapshots/0123/original" / CONFIG, repository / target
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    link.resolve().rename(elsewhere.resolve())
    link.unlink()
    link.symlink_to(Path("../../..") / target)
    with pytest.raises(CheckpointError, match="link"):
        Checkpoint.open(link.parent)


def test_damaged_files_load_or_raise_our_error_and_nothing_else(tmp_path: Path):
    save(tmp_path)
    chance = random.Random(0)
    refused = 0
    for name in (CONFIG, WEIGHTS, "generation_config.json"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(min(len(damaged), 2500))] = chance.choice(
                    [chance.randrange(256), *b'09{}[]",:-']
                )
            (tmp_path / name).write_bytes(damaged)
            try:
                logits_of(Checkpoint.open(tmp_path).load(torch.float32))
            except CheckpointError as error:
                refused += 1
                str(error).encode()
        (tmp_path / name).write_bytes(whole)
    assert 200 < refused < 450


@pytest.mark.parametrize(
    "change",
    [
        {"format": "int-quantized"},
        {"quant_method": "fp8"},
        {"config_groups": {}},
        {"ignore": "lm_head"},
        {"ignore": ["lm_head", "re:(a*)*b"]},
        {"ignore": ["lm_head"] + ["re:.*up_proj"] * 100},
        {"ignore": ["lm_head", "LlamaMLP"]},
        {"unheard_of": True},
        {"kv_cache_scheme": {"num_bits": 8}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
    ids=str,
)
def test_another_quantization_is_refused(tmp_path: Path, change: Change):
    save_quantized(tmp_path)
    edit_json(tmp_path / CONFIG, lambda raw: raw["quantization_config"].update(change))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        Checkpoint.open(tmp_path)


WEIGHT_CHANGES = [
    ({"symmetric": False}, "zero points"),
    ({"actorder": "group"}, "g_idx"),
    ({"dynamic": True}, "dynamic"),
    ({"num_bits": 2}, "4 or 8 bits"),
    ({"num_bits": True}, "4 or 8 bits"),
    ({"type": "float"}, "float-quantized"),
    ({"strategy": "tensor"}, "strategy"),
    ({"strategy": "group"}, "group_size"),
    ({"strategy": "group", "group_size": 0}, "group_size"),
    ({"strategy": "group", "group_size": -3}, "group_size"),
    ({"strategy": "group", "group_size": 2**40}, "group_size"),
    ({"strategy": "group", "group_size": 5}, "group size that divides"),
    ({"strategy": "channel", "group_size": 16}, "strategy"),
    ({"block_structure": [2, 2]}, "block_structure"),
    # What could be read, but is not what the files hold.
    ({"num_bits": 4}, "weight_packed has shape"),
    ({"strategy": "group", "group_size": 16}, "weight_scale has shape"),
]


@pytest.mark.parametrize(("change", "message"), WEIGHT_CHANGES, ids=str)
def test_other_quantized_weights_are_refused_with_why(tmp_path: Path, change: Change, message: str):
    save_quantized(tmp_path)

    def edit(raw: dict[str, Any]) -> None:
        raw["quantization_config"]["config_groups"]["group_0"]["weights"].update(change)

    edit_json(tmp_path / CONFIG, edit)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_activations": {"num_bits": 8, "type": "int", "dynamic": True}}, "input_activations"),
        ({"output_activations": {"num_bits": 8}}, "output_activations"),
        ({"weights": None}, "targets and weights"),
        ({"weights": 3}, "weights"),
        ({"targets": {"Linear": 1}}, "targets"),
        ({"targets": ["re:" + ".*" * 10 + "x"]}, "targets"),
        ({"format": "int-quantized"}, "pack-quantized"),
    ],
    ids=str,
)
def test_groups_that_ask_for_more_than_weights_are_refused(tmp_path: Path, change: Change, message: str):
    save_quantized(tmp_path)
    edit_json(tmp_path / CONFIG, lambda raw: raw["quantization_config"]["config_groups"]["group_0"].update(change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(("part", "reason"), [("weight_g_idx", "another order"), ("weight_zero_point", "zero points")])
def test_tensors_of_other_quantizations_are_refused_with_why(tmp_path: Path, part: str, reason: str):
    save_quantized(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight_scale"
    file = Checkpoint.open(tmp_path).layout[name].file
    added = name.replace("weight_scale", part)
    save_file(load_file(file) | {added: torch.zeros(80, dtype=torch.int32)}, file)
    edit_json(tmp_path / INDEX, lambda raw: raw["weight_map"].update({added: file.name}))
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint.open(tmp_path)


def test_a_quantized_config_that_names_a_billion_layers_costs_nothing(tmp_path: Path):
    save_quantized(tmp_path)
    edit_json(tmp_path / CONFIG, lambda raw: raw.update(num_hidden_layers=10**9))
    with pytest.raises(CheckpointError, match="is missing"):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="layers"):
        read_model(str(tmp_path))


def test_quantized_weights_without_their_config_are_refused(tmp_path: Path):
    save_quantized(tmp_path)
    edit_json(tmp_path / CONFIG, lambda raw: raw.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is missing"):
        Checkpoint.open(tmp_path)


def test_int8_weights_of_another_shape_than_they_say_are_refused(tmp_path: Path):
    save_quantized(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight_shape"
    file = Checkpoint.open(tmp_path).layout[name].file
    tensors = load_file(file)
    tensors[name] = torch.tensor([48, 79])
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.open(tmp_path).load()


def test_a_directory_that_is_not_there_is_told_from_one_of_another_kind(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"gone does not exist; expected a checkpoint directory\. `puna import`"):
        Checkpoint.open(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"has no config\.json; expected a checkpoint directory\. `puna import`"):
        Checkpoint.open(tmp_path)
