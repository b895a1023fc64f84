"""puna doctor is silent about good models, names exactly what is wrong with others, and fails on none."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import meta_chat
import numpy as np
import pytest
import torch
from doctor_fixtures import BROKEN, BROKEN_SHARDS, HOSTILE, JINJA, STOCK, Broken, config, template
from safetensors.torch import load_file, save_file

from puna.formats.chat.template import CHAT_TEMPLATE
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.checkpoint.gguf.blocks import KINDS as KINDS_READ
from puna.formats.checkpoint.gguf.blocks import OTHER_KINDS
from puna.formats.checkpoint.gguf.container import read_gguf
from puna.formats.checkpoint.gguf.modelfile import write_modelfile
from puna.formats.checkpoint.gguf.reader import open_gguf
from puna.formats.checkpoint.gguf.writer import write_gguf
from puna.formats.checkpoint.source import Source, disk_name
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.llama import Llama
from puna.model.quantization.scheme import FP8, INT8, Scheme
from puna.pipeline.artifacts import artifact
from puna.pipeline.artifacts.artifact import Manifest, Receipt
from puna.planning.doctor.command import doctor, print_report
from puna.planning.doctor.examine import examine
from puna.planning.doctor.render import render
from puna.planning.doctor.report import KINDS, Report
from puna.testing.tiny_checkpoint import CONFIG, SCALING, WEIGHTS, edit_json, save, save_quantized, tokenizer

PUNA = Path(sys.executable).with_name("puna")
TEMPLATE = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


@pytest.fixture(autouse=True, scope="module")
def each_rendering_once() -> Iterator[None]:
    """Start one process a template, not one a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("puna.planning.doctor.template.render", lambda *given: _render(json.dumps(given)))
        yield


@cache
def _render(given: str) -> Any:
    return render(*json.loads(given))


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good")
    save(path)
    return path


@pytest.fixture(scope="session")
def good_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    save(path, shard_bytes=60_000)
    return path


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model with Meta's vocabulary and the licence's files."""
    path = tmp_path_factory.mktemp("real")
    size = LlamaConfig(8, 16, 8, 1, 1, 1, 128_256, 131_072, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    model = Llama(size)
    model.initialize(seed=0)
    save_checkpoint(path, model, meta_chat.llama(), dtype=torch.bfloat16)
    for name in ("LICENSE", "USE_POLICY.md", "NOTICE"):
        (path / name).write_text("text")
    return path


def copy_of(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "model"))


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def assert_silent(report: Report) -> None:
    assert not report.findings, report.to_json()
    assert report.status == 0


# Good models


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"shard_bytes": 60_000}, {"dtype": torch.bfloat16}], ids=str)
def test_nothing_is_wrong_with_what_puna_writes(tmp_path: Path, options: dict[str, Any]):
    save(tmp_path, **options)
    assert_silent(examine(tmp_path))


@pytest.mark.parametrize(
    ("scheme", "name"),
    [(INT8, "int8"), (Scheme("int", 4, 16), "int4 g16"), (FP8, "fp8")],
    ids=lambda value: str(value),
)
def test_nothing_is_wrong_with_quantized_weights(tmp_path: Path, scheme: Scheme, name: str):
    save_quantized(tmp_path, scheme=scheme)
    report = examine(tmp_path)
    assert_silent(report)
    assert report.facts["quantization"] == name


def test_a_quantization_that_is_not_read_is_found_with_why(tmp_path: Path):
    save_quantized(tmp_path)
    weights = {"symmetric": False}
    edit_json(
        tmp_path / CONFIG,
        lambda raw: raw["quantization_config"]["config_groups"]["group_0"]["weights"].update(weights),
    )
    found = next(finding for finding in examine(tmp_path).findings if finding.code == "quantization-unknown")
    assert "zero points" in found.seen


def test_nothing_is_wrong_with_metas_vocabulary(real: Path):
    report = examine(real)
    assert_silent(report)
    assert report.facts["chat template"].startswith("the same as Llama 3.1's format in 8 of 8")


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_is_wrong_with_what_transformers_writes(good: Path, tmp_path: Path, tied: bool):
    import transformers

    start, path = tmp_path / "start", tmp_path / "theirs"
    start.mkdir()
    save(start, tied=tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(start)
    model.save_pretrained(path, max_shard_size="100KB")
    transformers.AutoTokenizer.from_pretrained(start).save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    assert_silent(examine(path))


def test_nothing_is_wrong_with_an_artifact(good: Path, tmp_path: Path):
    path = make_artifact(good, tmp_path)
    report = examine(path)
    assert_silent(report)
    assert "checkpoint by sft" in report.facts["artifact"]


def make_artifact(good: Path, tmp_path: Path) -> Path:
    path = tmp_path / "made"
    with artifact.writing(path) as partial:
        shutil.copytree(good, partial, dirs_exist_ok=True)
        Receipt("kl", "teacher", 0.1, 0.02, held=False).save(partial) if tmp_path.name.endswith("receipt") else None
        artifact.commit(partial, path, Manifest("checkpoint", "sft", "key", {}, {}, {}))
    return path


def test_nothing_is_wrong_with_a_snapshot_in_the_hugging_face_cache(good_shards: Path, tmp_path: Path):
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0123"
    shutil.copytree(good_shards, snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("../../blobs") / str(number))
    assert_silent(examine(snapshot))


# Broken ones


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_exactly_what_is_wrong_is_found(good: Path, tmp_path: Path, broken: Broken):
    path = copy_of(good, tmp_path)
    broken.change(path)
    assert codes(examine(path)) == broken.codes


@pytest.mark.parametrize("broken", BROKEN_SHARDS, ids=lambda broken: broken.name)
def test_exactly_what_is_wrong_with_shards_is_found(good_shards: Path, tmp_path: Path, broken: Broken):
    path = copy_of(good_shards, tmp_path)
    broken.change(path)
    assert codes(examine(path)) == broken.codes


def test_one_broken_file_hides_no_other(good: Path, tmp_path: Path):
    path = copy_of(good, tmp_path)
    names = ("a bias", "RoPE scaling lost", "padding with eot", "bos by flag and template", "NaN", "python beside")
    chosen = [broken for broken in BROKEN if broken.name in names]
    for broken in chosen:
        broken.change(path)
    (path / "generation_config.json").write_text("{")
    assert codes(examine(path)) == {code for broken in chosen for code in broken.codes} | {"file-unreadable"}


@pytest.mark.slow
def test_metas_vocabulary_is_held_against_what_is_known_of_it(real: Path, tmp_path: Path):
    path = copy_of(real, tmp_path)
    (path / "NOTICE").unlink()
    config(rope_theta=10_000.0)(path)

    def edit(raw: dict[str, Any]) -> None:
        raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
        ids = {token["content"]: token for token in raw["added_tokens"]}
        ids["<|eot_id|>"]["id"], ids["<|eom_id|>"]["id"] = ids["<|eom_id|>"]["id"], ids["<|eot_id|>"]["id"]

    edit_json(path / "tokenizer.json", edit)
    assert codes(examine(path, quick=True)) == {"licence-missing", "rope-lost", "special-misplaced", "split-differs"}


@pytest.mark.slow
def test_a_tokenizer_with_other_merges_is_found_by_a_sentence(real: Path, tmp_path: Path):
    path = copy_of(real, tmp_path)
    edit_json(path / "tokenizer.json", lambda raw: raw["model"].update(merges=[], ignore_merges=False))
    assert codes(examine(path, quick=True)) == {"tokenizer-differs"}


def test_a_published_size_with_another_stretch_is_named(good: Path, tmp_path: Path):
    path = copy_of(good, tmp_path)
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    config(**sizes, max_position_embeddings=131_072)(path)
    finding = next(each for each in examine(path).findings if each.code == "rope-odd")
    assert "factor 32" in finding.seen and "1b" in finding.seen


def test_an_altered_artifact_and_a_claim_that_did_not_hold_are_found(good: Path, tmp_path: Path):
    tmp_path = tmp_path / "with receipt"
    tmp_path.mkdir()
    path = make_artifact(good, tmp_path)
    assert codes(examine(path)) == {"receipt-not-held"}
    config(use_cache=False)(path)
    assert codes(examine(path)) == {"receipt-not-held", "artifact-altered"}


def test_quick_reads_no_values(good: Path, tmp_path: Path):
    path = copy_of(good, tmp_path)
    tensors = load_file(path / WEIGHTS)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, path / WEIGHTS)
    assert_silent(examine(path, quick=True))
    assert codes(examine(path)) == {"value-nan"}


def test_the_first_token_that_differs_is_shown_on_both_sides(good: Path, tmp_path: Path):
    path = copy_of(good, tmp_path)
    template(CHAT_TEMPLATE.replace("<|end_header_id|>\\n\\n", "<|end_header_id|>\\n"))(path)
    finding = next(each for each in examine(path).findings if each.where == f"{JINJA} (plain)")
    assert finding.code == "template-differs"
    sides = r"from token \d+ on, after '.*<\|end_header_id\|>\\n', it writes 'Where i'; expected '\\nWhere '"
    assert re.search(sides, finding.seen)


def test_the_stock_template_is_named_with_its_dates(good: Path, tmp_path: Path):
    path = copy_of(good, tmp_path)
    template(STOCK)(path)
    found = {finding.where: finding.seen for finding in examine(path).findings}
    assert "Hugging Face's stock Llama 3.1 template" in found[f"{JINJA} (call)"]
    dates = next(finding.seen for finding in examine(path).findings if finding.code == "template-dates")
    assert "prompt, plain, system, multi-turn" in dates and "it writes 'system'; expected 'user" in dates


# Templates that want too much


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped_and_named(good: Path, tmp_path: Path, name: str):
    path = copy_of(good, tmp_path)
    template(HOSTILE[name])(path)
    start = time.monotonic()
    assert codes(examine(path)) == {"template-hostile"}
    assert time.monotonic() - start < 10
    assert not list(tmp_path.rglob("owned"))


def test_a_template_sees_no_environment_and_no_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "do not tell")
    rendered = render("{{ strftime_now('%Y') }}{{ self.__dict__ }}", [{"messages": []}] * 2)
    assert "do not tell" not in str(rendered)
    assert render("{{ strftime_now('%d') }}", [{}])[0].text == render("{{ strftime_now('%Y') }}", [{}])[0].text


# Adapters


@pytest.fixture(scope="session")
def adapter(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_adapter(good, tmp_path_factory.mktemp("adapter"), ["q_proj", "down_proj"])


def trained_adapter(good: Path, path: Path, targets: list[str]) -> Path:
    import peft
    import transformers

    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(good), settings)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(path)
    return path


def edit_adapter(path: Path, change: Any) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, path / "adapter_model.safetensors")


def zero_ups(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.mul_(0.0 if "lora_B" in name else 1.0)


def add_layer(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name.replace("layers.1.", "layers.7."): tensor.clone() + 1 for name, tensor in tensors.items()})


def test_nothing_is_wrong_with_an_adapter_beside_its_base(adapter: Path, good: Path):
    assert_silent(examine(adapter))
    assert_silent(examine(adapter, base=good))


def test_nothing_is_wrong_with_embeddings_that_are_saved_beside_their_matrices(good: Path, tmp_path: Path):
    path = trained_adapter(good, tmp_path / "adapter", ["embed_tokens", "k_proj"])
    assert any(name.endswith("base_layer.weight") for name in load_file(path / "adapter_model.safetensors"))
    assert_silent(examine(path, base=good))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"peft_type": "IA3"}, {"adapter-unsupported"}),
        ({"lora_bias": True}, {"adapter-unsupported"}),
        ({"lora_alpha": None}, {"adapter-unsupported"}),
        ({"target_modules": ["c_attn"]}, {"adapter-target"}),
        ({"modules_to_save": ["lm_head"]}, {"adapter-extra"}),
        ({"base_model_name_or_path": None}, {"base-unknown"}),
        ({"r": 8}, {"adapter-rank"}),
        ({"rank_pattern": {"q_proj": 2}}, {"adapter-rank"}),
    ],
    ids=str,
)
def test_an_adapters_settings_are_judged(adapter: Path, tmp_path: Path, settings: dict[str, Any], expected: set[str]):
    path = copy_of(adapter, tmp_path)
    edit_json(path / "adapter_config.json", lambda raw: raw.update(settings))
    assert codes(examine(path)) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (zero_ups, {"adapter-untrained"}),
        (add_layer, {"adapter-target"}),
        (lambda tensors: next(iter(tensors.values()))[0, 0].fill_(float("nan")), {"value-nan"}),
        (lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)), {"adapter-rank"}),
    ],
)
def test_an_adapters_matrices_are_judged(adapter: Path, good: Path, tmp_path: Path, change: Any, expected: set[str]):
    path = copy_of(adapter, tmp_path)
    edit_adapter(path, change)
    assert codes(examine(path, base=good)) == expected


def test_an_adapter_on_another_base_is_found(adapter: Path, checkpoint_path: Path):
    assert codes(examine(adapter, base=checkpoint_path)) == {"adapter-target", "adapter-rank"}


def test_a_pickled_adapter_is_never_read(adapter: Path, tmp_path: Path):
    path = copy_of(adapter, tmp_path)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    assert codes(examine(path)) == {"weights-missing", "pickle-beside"}


# GGUF and Modelfile


@pytest.fixture(scope="session")
def gguf(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, Checkpoint.open(good).source(), kind="F16", name="tiny", template=TEMPLATE)
    write_modelfile(path.parent, path.name, sampling={"temperature": 0.6})
    return path


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_nothing_is_wrong_with_the_gguf_that_puna_writes(good: Path, tmp_path: Path, kind: Any):
    path = tmp_path / "model.gguf"
    write_gguf(path, Checkpoint.open(good).source(), kind=kind, name="tiny", template=TEMPLATE)
    report = examine(path)
    assert_silent(report)
    assert report.kind == "GGUF" and "8 of 8" in report.facts["chat template"]


def rewritten(gguf: Path, out: Path, stored_as: str = "", **changes: Any) -> Path:
    """Write the file anew with other keys (None: none) by llama.cpp's own package; matrices `stored_as` are zeros."""
    import gguf as theirs

    reader = theirs.GGUFReader(gguf)
    writer = theirs.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        value = changes.get(key.split(".")[-1], field.contents())
        if key.startswith("GGUF.") or key == "general.architecture" or value is None:
            continue
        kind = field.types[-1] if field.types[0] == theirs.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type=kind)
    for tensor in reader.tensors:
        if changes.get(tensor.name, ...) is None:
            continue
        if stored_as and tensor.data.ndim == 2:
            kind = theirs.GGMLQuantizationType[stored_as]
            block_len, block_bytes = theirs.GGML_QUANT_SIZES[kind]
            rows, columns = tensor.data.shape
            content = np.zeros((rows, columns // block_len * block_bytes), np.uint8)
            writer.add_tensor(tensor.name, content, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def in_order(value: object) -> str:
    """Name a parameter by its text, a set by its sorted members: workers of one test run need the same names."""
    return str(sorted(value)) if isinstance(value, set) else str(value)


WRONG_GGUFS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"chat_template": "{{ messages[0].content }}"},
     {"template-bos-missing", "template-differs", "template-tools-differ"}),
    ({"eos_token_id": 5}, {"stop-missing"}),
    ({"eos_token_id": 275, "eot_token_id": None}, {"stop-incomplete"}),
    ({"padding_token_id": 283}, {"pad-is-eos"}),
    ({"padding_token_id": 90_000}, {"id-out-of-range"}),
    ({"model": None}, {"tokenizer-missing"}),
    ({"pre": "gpt-2"}, {"gguf-unsupported"}),
    ({"tokens": ["fox"]}, {"gguf-unsupported", "vocab-differs"}),
    ({"rope_freqs.weight": None}, {"rope-lost"}),
    ({"rope_freqs.weight": None, "context_length": 2**31 - 1, "embedding_length": 2**30}, 
     {"gguf-unsupported", "rope-lost"}),
    ({"blk.0.attn_q.weight": None}, {"tensor-missing"}),
    ({"block_count": 2**31 - 1}, {"tensor-missing"}),
    ({"block_count": 1}, {"tensor-extra"}),
    ({"feed_forward_length": 512}, {"tensor-shape"}),
    ({"blk.0.attn_q.weight": None, "block_count": 1, "feed_forward_length": 512, "eos_token_id": 5, "pre": None},
     {"tensor-missing", "tensor-extra", "tensor-shape", "gguf-unsupported"}),
    ({"add_bos_token": False, "chat_template": None}, {"bos-missing"}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), WRONG_GGUFS, ids=in_order)
def test_exactly_what_is_wrong_with_a_gguf_is_found(
    gguf: Path, tmp_path: Path, changes: dict[str, Any], expected: set[str]
):
    assert codes(examine(rewritten(gguf, tmp_path / "model.gguf", **changes))) == expected


@pytest.fixture(scope="session")
def wide_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose rows are whole blocks of any kind."""
    config = LlamaConfig(256, 256, 128, 2, 2, 1, tokenizer().vocab_size, 16_384, rope_scaling=SCALING)
    network = Llama(config)
    network.initialize(seed=0)
    tensors = {disk_name(name): tensor.detach() for name, tensor in network.state_dict().items()}
    source = Source("test", config, torch.float32, tensors.__getitem__, tokenizer())
    path = tmp_path_factory.mktemp("wide") / "model.gguf"
    write_gguf(path, source, kind="F16", name="wide", template=TEMPLATE)
    return path


@pytest.mark.parametrize("kind", ["Q5_0", "Q4_K", "IQ4_XS"])
def test_a_gguf_whose_weights_we_cannot_read_is_not_called_broken(wide_gguf: Path, tmp_path: Path, kind: str):
    report = examine(rewritten(wide_gguf, tmp_path / "model.gguf", stored_as=kind))
    assert codes(report) == {"gguf-kind"} and report.status == 1
    finding = report.findings[0]
    assert f"16 in {kind} of 22 tensors" in finding.seen and "Q8_0" in finding.seen and "safetensors" in finding.remedy
    assert "8 of 8" in report.facts["chat template"]


@pytest.mark.parametrize(("changes", "expected"), WRONG_GGUFS, ids=in_order)
def test_all_else_that_is_wrong_with_weights_that_we_cannot_read_is_found(
    wide_gguf: Path, tmp_path: Path, changes: dict[str, Any], expected: set[str]
):
    report = examine(rewritten(wide_gguf, tmp_path / "model.gguf", stored_as="Q4_K", **changes))
    assert codes(report) == expected | {"gguf-kind"}


def test_weights_that_we_cannot_read_are_held_against_the_file(wide_gguf: Path, tmp_path: Path):
    path = rewritten(wide_gguf, tmp_path / "model.gguf", stored_as="Q4_K")
    content = path.read_bytes()
    norm = read_gguf(path).tensors["output_norm.weight"]
    path.write_bytes(content[: norm.offset] + b"\0\0\xc0\x7f" + content[norm.offset + 4 :])
    assert codes(examine(path)) == {"gguf-kind", "value-nan"}
    path.write_bytes(content[:-200])
    assert codes(examine(path)) == {"weights-unreadable"}


def test_the_sizes_of_kinds_are_those_of_the_gguf_package():
    import gguf as theirs

    for name, kind in (KINDS_READ | OTHER_KINDS).items():
        number = theirs.GGMLQuantizationType[name]
        assert (kind.number, (kind.block_len, kind.block_bytes)) == (number, theirs.GGML_QUANT_SIZES[number]), name


def test_a_gguf_with_nan_or_cut_short_is_found(gguf: Path, tmp_path: Path):
    path = tmp_path / "model.gguf"
    content = gguf.read_bytes()
    path.write_bytes(content[:-200] + b"\xff\x7f" + content[-198:])
    assert codes(examine(path)) == {"value-nan"}
    path.write_bytes(content[:-200])
    assert codes(examine(path)) == {"weights-unreadable"}


def test_nothing_is_wrong_with_the_modelfile_that_puna_writes(gguf: Path):
    report = examine(gguf.with_name("Modelfile"))
    assert_silent(report)
    assert report.kind == "Modelfile"


TURN = 'TEMPLATE """<|start_header_id|>user<|end_header_id|>{{ .Prompt }}<|eot_id|>"""\n'
STOPS = "".join(f'PARAMETER stop "{text}"\n' for text in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM llama3.1:8b\nPARAMETER num_ctx 8192\n", set()),
        ('SYSTEM """\nFROM nowhere\n"""\n', {"modelfile-from"}),
        (f"FROM ./gone.gguf\n{TURN}{STOPS}", {"modelfile-from"}),
        (f"FROM ./model.gguf\nADAPTER ./gone\n{TURN}{STOPS}", {"modelfile-from"}),
        ("FROM https://example.com/model.gguf\n", {"modelfile-remote"}),
        (f"FROM ./model.gguf\n{STOPS}", {"modelfile-template"}),
        (f"FROM ./model.gguf\n{TURN}", {"stop-incomplete"}),
        (f'FROM ./model.gguf\nTEMPLATE "[INST] {{{{ .Prompt }}}}"\n{STOPS}', {"template-differs"}),
        (f"FROM ./model.gguf\n{TURN.replace('<|s', '<|begin_of_text|><|s')}{STOPS}", {"bos-doubled"}),
        (f"FROM ./model.gguf\n{TURN}{STOPS}PARAMETER num_ctx 512\n", {"modelfile-context"}),
    ],
)
def test_exactly_what_is_wrong_with_a_modelfile_is_found(gguf: Path, tmp_path: Path, text: str, expected: set[str]):
    shutil.copy(gguf, tmp_path / "model.gguf")
    (tmp_path / "Modelfile").write_text(text)
    assert codes(examine(tmp_path / "Modelfile")) == expected


# The command


def test_the_command_prints_json_of_a_fixed_shape(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = copy_of(good, tmp_path)
    config(pad_token_id=283, rope_scaling=None)(path)
    with pytest.raises(SystemExit) as ended:
        doctor(path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == told["status"] == 2
    assert told.keys() == {"path", "kind", "status", "facts", "findings"}
    found = {finding["code"]: finding for finding in told["findings"]}
    assert found.keys() == {"pad-is-eos", "rope-lost"}
    assert all(each.keys() == {"severity", "code", "where", "what", "remedy"} for each in told["findings"])
    assert found["pad-is-eos"]["severity"] == "warning" and found["rope-lost"]["severity"] == "broken"


@pytest.mark.parametrize(("change", "status"), [({}, 0), ({"pad_token_id": 283}, 1), ({"model_type": "x"}, 2)])
def test_the_exit_status_tells_good_from_warned_from_broken(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], status: int
):
    path = copy_of(good, tmp_path)
    config(**change)(path)
    with pytest.raises(SystemExit) as ended:
        doctor(path)
    assert ended.value.code == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("nothing wrong", "1 warning", "1 broken, 0 warnings")[status]


def test_what_foreign_files_say_cannot_drive_the_terminal(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from rich.console import Console

    path = copy_of(good, tmp_path)
    (path / "a\x1b[2J[red].py").write_text("")
    config(torch_dtype="\x1b]0;owned\x07", rms_norm_eps="\ud800")(path)
    print_report(examine(path), Console())
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[red]" in out


def test_a_path_that_holds_no_model_is_said_so(tmp_path: Path):
    assert codes(examine(tmp_path / "gone")) == {"path-missing"}
    assert codes(examine(tmp_path)) == {"path-unknown"}
    (tmp_path / "notes.txt").write_text("text")
    assert codes(examine(tmp_path / "notes.txt")) == {"path-unknown"}
    (tmp_path / "params.json").write_text("{}")
    (pickled,) = examine(tmp_path).findings
    assert pickled.code == "path-pickled" and "puna import" in pickled.remedy


def test_puna_doctor_runs_as_a_program(good: Path):
    done = subprocess.run([PUNA, "doctor", good, "--quick"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("nothing wrong\n")


# Anything at all


FAST = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.mark.parametrize("seed", FAST)
def test_no_damage_makes_the_doctor_fail(good_shards: Path, adapter: Path, gguf: Path, tmp_path: Path, seed: int):
    shutil.copytree(good_shards, tmp_path / "model")
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(gguf.parent, tmp_path / "gguf")
    chance = random.Random(seed)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != JINJA)
    noticed = 0
    for _ in range(60):
        file = chance.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, chance))
        report = examine(file if file.parent.name == "gguf" else file.parent)
        found = codes(report)
        assert "check-failed" not in found, report.findings
        json.dumps(report.to_json()).encode()
        if file.suffix == ".gguf" and report.status < 2 and "gguf-kind" not in found:
            open_gguf(file)  # What is not called broken can be opened.
        noticed += bool(found)
        file.write_bytes(whole)
    assert noticed > 20


def damaged(whole: bytes, chance: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(chance.randint(1, 5)):
        content[chance.randrange(min(len(content), 3000))] = chance.choice([chance.randrange(256), *b'09{}[]",:-'])
    return bytes(content[: chance.choice([len(content)] * 4 + [chance.randrange(len(content))])])


JSON_VALUES = [None, True, -1, 0, 10**30, 1.5, "", "x\x00", [], [[]], ["a"], {}, {"a": [1]}, [{"id": 7}], 1e308]


def test_no_odd_value_in_a_json_file_makes_the_doctor_fail(good_shards: Path, tmp_path: Path):
    path = copy_of(good_shards, tmp_path)
    chance = random.Random(1)
    for file in sorted(path.glob("*.json")):
        whole = file.read_text()
        for _ in range(20):
            raw = json.loads(whole)
            node = raw
            while isinstance(node, dict) and node:
                key = chance.choice(list(node))
                if not isinstance(node[key], dict) or chance.random() < 0.4:
                    node[key] = chance.choice(JSON_VALUES)
                    break
                node = node[key]
            file.write_text(json.dumps(raw))
            report = examine(path, quick=True)
            assert "check-failed" not in codes(report), (file.name, report.findings)
        file.write_text(whole)


# The page


def test_the_page_lists_every_finding_as_the_code_has_it():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(code, kind.severity, kind.meaning) for code, kind in KINDS.items()]


def test_every_finding_is_made_by_some_fixture():
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in ("test_doctor.py", "doctor_fixtures.py"))
    never = {code for code in KINDS if f'"{code}"' not in text}
    assert not never


def test_the_ids_of_the_fixtures_are_the_tokens_that_they_mean():
    specials = tokenizer().special_ids
    assert (specials["end_of_text"], specials["eot_id"]) == (275, 283)


def test_a_path_beside_the_model_leads_to_it(good: Path, gguf: Path):
    (inside,) = examine(good / "config.json").findings
    assert inside.code == "path-unknown" and inside.remedy == f"Name its directory: {good}"
    (around,) = examine(gguf.parent).findings
    assert around.code == "path-unknown" and around.remedy.startswith(f"Name the file: {gguf.parent}")


def test_a_base_that_nothing_asks_for_is_said_to_be_left_aside(good: Path):
    assert "only an adapter has one" in examine(good, base=good, quick=True).facts["base"]


def test_a_machine_without_a_compiler_is_told_what_that_costs(good: Path, monkeypatch: pytest.MonkeyPatch):
    assert "kernels" not in examine(good, quick=True).facts
    monkeypatch.setattr("puna.model.kernels.build.COMPILERS", ("no-such-compiler",))
    report = examine(good, quick=True)
    assert "torch runs models instead" in report.facts["kernels"] and not report.findings
