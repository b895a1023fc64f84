"""GGUF: gguf and llama.cpp read what we write, we read what they write, and Ollama's prompt is ours."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import meta_chat
import numpy as np
import pytest
import torch

from puna.formats.chat import ChatFormat, Conversation
from puna.formats.chat.template import PLAIN_TEMPLATE
from puna.formats.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.formats.checkpoint.gguf.blocks import decode, encode
from puna.formats.checkpoint.gguf.container import read_gguf
from puna.formats.checkpoint.gguf.modelfile import render_template, write_modelfile
from puna.formats.checkpoint.gguf.reader import open_gguf
from puna.formats.checkpoint.gguf.writer import WrittenKind, write_gguf
from puna.formats.checkpoint.source import Source, disk_name, tensor_shapes
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.llama import Llama
from puna.pipeline.errors import CheckpointError
from puna.testing.tiny_checkpoint import SCALING, tokenizer

KINDS: tuple[WrittenKind, ...] = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
SCALINGS = (None, SCALING, RopeScaling(32.0, 1.0, 4.0, 8192))
TOKENS = torch.arange(100) * 7 % 250
TEXTS = (
    "", " ", "Hello, world!", "  two spaces, 12345678 digits\n\n\tand\r\n tabs  ", "don't WE'LL i'm", "naïve — “ok”",
    "日本語のテキスト、한국어, ไทย, हिन्दी", "🙂👩‍👩‍👧 emoji", "def f(x):\n    return x ** 2  # done\n",
    "<|eot_id|> is text", "a" * 500, "\u00a0\u3000x\u200b", "Ångström 3.14159e-10 (x)[y]{z}", 
    "quick brown fox jumps over the lazy dog",
)  # fmt: skip


def model(*, tied: bool = False, scaling: RopeScaling | None = None, **sizes: int) -> Llama:
    """A random network whose heads together are wider than the model."""
    widths = {"dim": 64, "hidden_dim": 96, "head_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2} | sizes
    config = LlamaConfig(
        **({"vocab_size": tokenizer().vocab_size, "max_context": 16_384} | widths),
        rope_scaling=scaling,
        tie_embeddings=tied,
    )
    made = Llama(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.15, generator=generator)
    return made.eval()


def source_of(network: Llama, words: Tokenizer | None = None, dtype: torch.dtype = torch.float32) -> Source:
    tensors = {disk_name(name): tensor.detach().to(dtype) for name, tensor in network.state_dict().items()}
    return Source("test", network.config, dtype, tensors.__getitem__, words or tokenizer(), {"temperature": 0.6})


def write(path: Path, source: Source, kind: WrittenKind = "F32") -> Path:
    write_gguf(path, source, kind=kind, name="tiny", template=PLAIN_TEMPLATE, licence="Llama 3.1")
    return path


def load(source: Source) -> Llama:
    """The network of a source, in float32."""
    network = Llama(source.config)
    state = {name: source.read(disk_name(name)).float() for name in network.state_dict()}
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def logits_of(network: Llama) -> torch.Tensor:
    return network.logits(network(TOKENS, torch.arange(len(TOKENS)), packed_attend([len(TOKENS)])))


# Round trips


@pytest.mark.parametrize("scaling", SCALINGS, ids=["plain", "x8", "x32"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_float_file_reads_back_as_the_same_model(tmp_path: Path, tied: bool, scaling: RopeScaling | None):
    source = source_of(model(tied=tied, scaling=scaling))
    read = open_gguf(write(tmp_path / "m.gguf", source))
    assert read.config == source.config
    assert read.dtype == torch.float32 and read.sampling == {"do_sample": True, "temperature": 0.6}
    assert all(torch.equal(read.read(name), source.read(name)) for name in tensor_shapes(source.config))


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_is_kept_as_it_is_stored(tmp_path: Path, kind: WrittenKind, dtype: torch.dtype):
    source = source_of(model(), dtype=dtype)
    read = open_gguf(write(tmp_path / "m.gguf", source, kind))
    assert read.dtype == dtype
    assert all(torch.equal(read.read(name).to(dtype), source.read(name)) for name in tensor_shapes(source.config))
    assert read.read("model.layers.1.mlp.up_proj.weight").dtype == dtype


def test_a_file_becomes_a_checkpoint_with_the_same_weights_and_ids(tmp_path: Path):
    source = source_of(model(tied=True, scaling=SCALING))
    read = open_gguf(write(tmp_path / "m.gguf", source))
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", read)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert torch.equal(logits_of(checkpoint.load()), logits_of(load(source)))
    assert [checkpoint.tokenizer().encode(text) for text in TEXTS] == [tokenizer().encode(text) for text in TEXTS]
    again = open_gguf(write(tmp_path / "again.gguf", checkpoint.source()))
    assert read_gguf(tmp_path / "m.gguf").metadata.keys() <= read_gguf(tmp_path / "again.gguf").metadata.keys()
    assert torch.equal(again.read("model.embed_tokens.weight"), source.read("model.embed_tokens.weight"))


def require_same_ids(read: Tokenizer | None, ours: Tokenizer) -> None:
    assert read is not None and read.fingerprint == ours.fingerprint
    assert [read.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert read.special_ids == ours.special_ids and read.vocab_size == ours.vocab_size
    assert read.decode(range(ours.vocab_size)) == ours.decode(range(ours.vocab_size))


def test_a_trained_tokenizer_survives_with_all_ids(tmp_path: Path):
    more_rows = model(vocab_size=tokenizer().vocab_size + 3)
    require_same_ids(open_gguf(write(tmp_path / "m.gguf", source_of(more_rows))).tokenizer, tokenizer())


@pytest.fixture(scope="module")
def meta_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with Meta's tokenizer and a network of almost nothing."""
    small = model(dim=32, hidden_dim=32, num_layers=1, vocab_size=meta_chat.llama().vocab_size, tied=True)
    return write(tmp_path_factory.mktemp("meta") / "m.gguf", source_of(small, meta_chat.llama()), "Q8_0")


def test_metas_tokenizer_survives_with_all_ids(meta_path: Path):
    require_same_ids(open_gguf(meta_path).tokenizer, meta_chat.llama())


def test_greedy_decoding_survives(tmp_path: Path):
    greedy = replace(source_of(model()), sampling={"do_sample": False})
    assert open_gguf(write(tmp_path / "m.gguf", greedy)).sampling == {"do_sample": False}


def test_sampling_defaults_that_a_file_cannot_hold_are_refused_by_name(tmp_path: Path):
    source = source_of(model())
    for key, value in (("top_k", -1), ("temperature", 1e40), ("top_p", float("nan"))):
        with pytest.raises(CheckpointError, match=f"{key} = "):
            write(tmp_path / "m.gguf", replace(source, sampling={key: value}))
    assert not list(tmp_path.iterdir())


def test_an_unfinished_file_does_not_stay(tmp_path: Path):
    source = source_of(model(), dtype=torch.float64)
    source.read("lm_head.weight")[3, 3] = 1e9
    with pytest.raises(CheckpointError, match=r"output\.weight has a value of 1e\+09"):
        write(tmp_path / "m.gguf", source, "F16")
    assert not list(tmp_path.iterdir())
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match="already exists"):
        write(tmp_path / "m.gguf", source_of(model()))
    assert (tmp_path / "m.gguf").read_text() == "mine"


# Against the gguf package


def awkward_rows() -> torch.Tensor:
    """Rows of all sizes, with zeros, ties, subnormal scales, and largest values of both signs."""
    rows = torch.randn(300, 512, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 4, 300)[:, None]
    rows[7, :100] = 0
    rows[8] = torch.arange(512) % 16 - 8.0
    rows[9] = torch.arange(512) % 255 / 2 - 63.5
    return rows


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_blocks_equal_the_reference_byte_for_byte(kind: str):
    rows, number = awkward_rows(), gguf.GGMLQuantizationType[kind]
    theirs = gguf.quants.quantize(rows.numpy(), number).view(np.uint8)
    assert np.array_equal(encode(rows, kind), theirs)
    ours = decode(theirs.copy(), kind, tuple(rows.shape)).float().numpy()
    assert np.array_equal(ours, gguf.quants.dequantize(theirs, number).reshape(ours.shape))


def test_q6_k_blocks_are_read_as_the_reference_reads_them():
    data = np.random.default_rng(0).integers(0, 256, (40, 420), np.uint8)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q6_K)
    assert np.array_equal(decode(data, "Q6_K", (40, 512)).numpy(), theirs, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gguf_package_reads_the_same_tensors(tmp_path: Path, kind: WrittenKind):
    source = source_of(model(scaling=SCALING))
    path = write(tmp_path / "m.gguf", source, kind)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = read_gguf(path)
    assert theirs.keys() == ours.tensors.keys()
    for name, tensor in ours.tensors.items():
        values = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert np.array_equal(decode(ours.content(name), tensor.kind, tensor.shape).float().numpy(), values), name
        assert tensor.kind == "F32" if len(tensor.shape) == 1 else tensor.kind in (kind, "Q8_0")


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path):
    source = source_of(model(scaling=SCALING))
    ours = read_gguf(write(tmp_path / "ours.gguf", source))
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_custom_alignment(64)
    for key, value in ours.metadata.items():
        if key.startswith("llama."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint64)(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smaug-bpe")
    writer.add_token_list(list(ours.metadata["tokenizer.ggml.tokens"]))
    writer.add_token_types(ours.metadata["tokenizer.ggml.token_type"].tolist())
    writer.add_token_merges(list(ours.metadata["tokenizer.ggml.merges"]))
    for name, tensor in ours.tensors.items():
        writer.add_tensor(name, decode(ours.content(name), tensor.kind, tensor.shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = open_gguf(tmp_path / "theirs.gguf")
    assert read.config == source.config and torch.equal(logits_of(load(read)), logits_of(load(source)))
    assert read.tokenizer and read.tokenizer.fingerprint == tokenizer().fingerprint


def test_rows_that_are_no_whole_blocks_stay_float16(tmp_path: Path):
    odd = source_of(model(dim=48, hidden_dim=64))
    others = write_gguf(tmp_path / "m.gguf", odd, kind="Q4_0", name="odd", template="")
    assert others.pop("output.weight") == "F16" and set(others.values()) == {"F16"}
    quantized = {name for name, tensor in read_gguf(tmp_path / "m.gguf").tensors.items() if tensor.kind == "Q4_0"}
    assert quantized == {f"blk.{layer}.{part}.weight" for layer in (0, 1) for part in ("attn_output", "ffn_down")}
    assert not {f"{name}.weight" for name in others} & quantized


# Against llama.cpp


def open_llama_cpp(path: Path, **options: Any) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    settings = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
    return llama_cpp.Llama(str(path), **settings | {"type_k": 0, "type_v": 0} | options)


def logits_of_llama_cpp(path: Path) -> torch.Tensor:
    theirs = open_llama_cpp(path)
    theirs.eval(TOKENS.tolist())
    return torch.from_numpy(np.array(theirs.scores[: len(TOKENS)]))


@pytest.mark.parametrize("scaling", SCALINGS, ids=["plain", "x8", "x32"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_llama_cpp_computes_our_logits(tmp_path: Path, tied: bool, scaling: RopeScaling | None):
    network = model(tied=tied, scaling=scaling)
    path = write(tmp_path / "m.gguf", source_of(network))
    difference = (logits_of_llama_cpp(path) - logits_of(network)).abs().max()
    other = model(tied=tied, scaling=None if scaling else SCALING)
    assert difference < 1e-4 < (logits_of(other) - logits_of(network)).abs().max() / 10


def mean_kl(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("kind", "most", "most_kl"), [("F16", 0.02, 1e-5), ("BF16", 0.1, 2e-4), ("Q8_0", 0.5, 1e-3), ("Q4_0", 0.5, 1e-3)]
)
def test_llama_cpp_computes_our_logits_from_smaller_kinds(
    tmp_path: Path, kind: WrittenKind, most: float, most_kl: float
):
    # llama.cpp also rounds what it multiplies the weights with: to their dtype, or for blocks to 8 bits.
    path = write(tmp_path / "m.gguf", source_of(model(scaling=SCALING)), kind)
    ours, theirs = logits_of(load(open_gguf(path))), logits_of_llama_cpp(path)
    assert (ours - theirs).abs().max() < most and mean_kl(ours, theirs) < most_kl
    assert (ours.argmax(-1) == theirs.argmax(-1)).sum() >= 95


def quantize_with_llama_cpp(source: Path, target: Path, file_type: int) -> Path:
    llama_cpp = pytest.importorskip("llama_cpp")
    open_llama_cpp(source)  # Silences the library's log.
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = file_type, 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings) == 0
    return target


@pytest.mark.parametrize(("kind", "file_type"), [("Q8_0", 7), ("Q4_0", 2)])
def test_llama_cpps_own_quantizer_writes_the_blocks_that_we_write(tmp_path: Path, kind: WrittenKind, file_type: int):
    source = source_of(model(dim=256, hidden_dim=256))
    ours = read_gguf(write(tmp_path / "ours.gguf", source, kind))
    floats = write(tmp_path / "floats.gguf", source)
    theirs = read_gguf(quantize_with_llama_cpp(floats, tmp_path / "theirs.gguf", file_type))
    for name, tensor in theirs.tensors.items():
        if (kind, name) == ("Q4_0", "output.weight"):
            assert (tensor.kind, ours.tensors[name].kind) == ("Q6_K", "Q8_0")
        else:
            assert tensor.kind == ours.tensors[name].kind
            assert np.array_equal(theirs.content(name), ours.content(name)), name
    read = open_gguf(tmp_path / "theirs.gguf")
    distance = read.read("lm_head.weight") - source.read("lm_head.weight")
    assert distance.abs().max() < 0.02 and read.config == source.config


def test_llama_cpp_splits_texts_as_we_do(tmp_path: Path):
    theirs = open_llama_cpp(write(tmp_path / "m.gguf", source_of(model())), vocab_only=True, logits_all=False)
    assert [theirs.tokenize(text.encode(), add_bos=False) for text in TEXTS] == list(map(tokenizer().encode, TEXTS))
    assert theirs.tokenize(b"fox")[0] == tokenizer().special("begin_of_text")
    assert theirs.tokenize(b"<|eot_id|>", add_bos=False, special=True) == [tokenizer().special("eot_id")]
    assert theirs.metadata["tokenizer.chat_template"] == PLAIN_TEMPLATE


def test_llama_cpp_splits_texts_as_metas_tokenizer_does(meta_path: Path):
    theirs = open_llama_cpp(meta_path, vocab_only=True, logits_all=False)
    assert [theirs.tokenize(text.encode(), add_bos=False) for text in TEXTS] == list(
        map(meta_chat.llama().encode, TEXTS)
    )


@pytest.mark.parametrize("name", ["eot_id", "eom_id", "end_of_text"])
def test_llama_cpp_stops_at_each_end(tmp_path: Path, name: str):
    theirs = open_llama_cpp(write(tmp_path / "m.gguf", source_of(model())))

    def generate(token_id: int) -> str:
        settings: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logit_bias": {str(token_id): 1000.0}}
        return theirs.create_completion([5, 6, 7], **settings)["choices"][0]["finish_reason"]

    assert generate(tokenizer().special(name)) == "stop"
    assert generate(tokenizer().encode("fox")[0]) == generate(tokenizer().special("python_tag")) == "length"


# Ollama

TOOL = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Say where an order is",
        "parameters": {
            "type": "object",
            "properties": {
                "number": {"type": "integer", "description": 'Its "number"'},
                "state": {"type": "string", "enum": ["open", "closed"]},
            },
            "required": ["number"],
        },
    },
}
NO_ARGUMENTS = {
    "type": "function",
    "function": {"name": "list_orders", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "find_order", "arguments": {"number": 7, "state": "open"}}}
SYSTEM, ASK = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is my order 7?"}
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [CALL, {"function": {"name": "list_orders", "arguments": {}}}],
}
DIALOGUES: list[dict[str, Any]] = [
    {"messages": [ASK]},
    {"messages": [SYSTEM, ASK, {"role": "assistant", "content": "Öffnet um 9."}, {"role": "user", "content": "So?"}]},
    {"messages": [ASK], "tools": [TOOL]},
    {"messages": [SYSTEM, ASK], "tools": [TOOL, NO_ARGUMENTS]},
    {"messages": [SYSTEM, ASK, CALLS, {"role": "tool", "content": '{"state": "open"}'}], "tools": [TOOL, NO_ARGUMENTS]},
    {"messages": [ASK, CALLS | {"content": "Wait."}], "tools": [TOOL, NO_ARGUMENTS]},
]

# What Ollama gives its templates: types as in its api package, and the function `json`.
GO_PROGRAM = """package main

import ("encoding/json"; "os"; "text/template")

type Property struct {
	Type any `json:"type"`
	Items any `json:"items"`
	Description string `json:"description"`
	Enum []any `json:"enum"`
}
type Tool struct {
	Type string `json:"type"`
	Function struct {
		Name string `json:"name"`
		Description string `json:"description"`
		Parameters struct {
			Type string `json:"type"`
			Required []string `json:"required"`
			Properties map[string]Property `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}
type Call struct {
	Function struct {
		Name string `json:"name"`
		Arguments map[string]any `json:"arguments"`
	} `json:"function"`
}
type Message struct {
	Role string `json:"role"`
	Content string `json:"content"`
	ToolCalls []Call `json:"tool_calls"`
}
type Case struct {
	Template string
	Messages []*Message
	Tools []Tool
}

func asJSON(value any) string { text, _ := json.Marshal(value); return string(text) }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	rendered := []string{}
	for _, each := range cases {
		functions := template.FuncMap{"json": asJSON}
		parsed := template.Must(template.New("").Option("missingkey=zero").Funcs(functions).Parse(each.Template))
		file, _ := os.CreateTemp("", "prompt")
		values := map[string]any{"System": "", "Messages": each.Messages, "Tools": each.Tools, "Response": ""}
		if err := parsed.Execute(file, values); err != nil { panic(err) }
		text, _ := os.ReadFile(file.Name())
		rendered = append(rendered, string(text))
	}
	json.NewEncoder(os.Stdout).Encode(rendered)
}
"""


def prompt_text(dialogue: dict[str, Any]) -> str:
    """The text of our prompt without begin_of_text, which Ollama's runner adds."""
    return tokenizer().decode(ChatFormat(tokenizer()).prompt(Conversation.from_json(dialogue))[1:])


@pytest.mark.skipif(not shutil.which("go"), reason="needs Go")
@pytest.mark.slow
def test_ollamas_template_writes_our_prompt(tmp_path: Path):
    dialogues = [{**dialogue, "environment": environment} for dialogue in DIALOGUES for environment in ("", "ipython")]
    cases = [{**dialogue, "template": render_template(dialogue["environment"])} for dialogue in dialogues]
    (tmp_path / "main.go").write_text(GO_PROGRAM)
    environment = os.environ | {"GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "TMPDIR": str(tmp_path)}
    command = ["go", "run", str(tmp_path / "main.go")]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for dialogue, text in zip(dialogues, json.loads(done.stdout), strict=True):
        assert text == prompt_text(dialogue)


def test_a_modelfile_names_the_file_the_stops_and_the_licence(tmp_path: Path):
    path = write_modelfile(
        tmp_path, "m.gguf", sampling={"temperature": 0.6, "top_p": 0.9, "do_sample": True}, licence="Llama 3.1\nterms"
    )
    text = path.read_text()
    assert text.startswith('FROM ./m.gguf\nTEMPLATE """') and 'LICENSE """Llama 3.1\nterms"""' in text
    assert "PARAMETER temperature 0.6\nPARAMETER top_p 0.9\n" in text and "SYSTEM" not in text
    ends = [tokenizer().decode([token_id]) for token_id in tokenizer().stop_ids]
    assert all(f'PARAMETER stop "{end}"\n' in text for end in ends)


def test_a_modelfile_refuses_what_it_cannot_quote(tmp_path: Path):
    for options in ({"system": 'Say """'}, {"licence": 'called "Llama"'}):
        with pytest.raises(CheckpointError, match="quote"):
            write_modelfile(tmp_path, "m.gguf", sampling={}, **options)
    with pytest.raises(CheckpointError, match="without path"):
        write_modelfile(tmp_path, "../m.gguf", sampling={})
    assert not list(tmp_path.iterdir())
