"""Checkpoints with one thing wrong each, and the codes that puna doctor must find in them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from puna.formats.chat.template import CHAT_TEMPLATE
from puna.testing.tiny_checkpoint import CONFIG, INDEX, WEIGHTS, edit_header, edit_json

GENERATION, TOKENIZER, TOKENIZER_CONFIG = "generation_config.json", "tokenizer.json", "tokenizer_config.json"
JINJA = "chat_template.jinja"
NORM = "model.norm.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
Change = Callable[[Path], Any]


class Broken(NamedTuple):
    """What is done to a good checkpoint, and every code that it must lead to."""

    name: str
    change: Change
    codes: set[str]


def config(**settings: Any) -> Change:
    return lambda path: edit_json(path / CONFIG, lambda raw: raw.update(settings))


def generation(**settings: Any) -> Change:
    return lambda path: edit_json(path / GENERATION, lambda raw: raw.update(settings))


def flag_special(text: str, **flags: bool) -> Change:
    def edit(raw: dict[str, Any]) -> None:
        next(each for each in raw["added_tokens"] if each["content"] == text).update(flags)

    return lambda path: edit_json(path / TOKENIZER, edit)


def tokenizer_config(**settings: Any) -> Change:
    return lambda path: edit_json(path / TOKENIZER_CONFIG, lambda raw: raw.update(settings))


def without(name: str, *keys: str) -> Change:
    return lambda path: edit_json(path / name, lambda raw: [raw.pop(key) for key in keys])


def template(text: str) -> Change:
    return lambda path: (path / JINJA).write_text(text)


def ours_with(old: str, new: str) -> Change:
    """Replace a part of our template, which must be there."""
    assert old in CHAT_TEMPLATE, old
    return template(CHAT_TEMPLATE.replace(old, new))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def edit(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        change(tensors)
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})

    return edit


def fill(name: str, value: float) -> Change:
    return weights(lambda tensors: tensors[name].fill_(value))


def poke(name: str, value: float) -> Change:
    return weights(lambda tensors: tensors[name].flatten()[3:4].fill_(value))


def cut(name: str) -> Change:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-5])


def write(name: str, content: bytes) -> Change:
    return lambda path: (path / name).write_bytes(content)


def remove(name: str) -> Change:
    return lambda path: (path / name).unlink()


def both(*changes: Change) -> Change:
    return lambda path: [change(path) for change in changes]


def link_out(name: str) -> Change:
    def move(path: Path) -> None:
        outside = path.parent / f"outside-{name}"
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return move


def processor(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda path: edit_json(path / TOKENIZER, lambda raw: change(raw["post_processor"]))


def rename_special(old: str, new: str) -> Change:
    def edit(raw: dict[str, Any]) -> None:
        next(token for token in raw["added_tokens"] if token["content"] == old)["content"] = new

    return lambda path: edit_json(path / TOKENIZER, edit)


def grow(path: Path) -> None:
    """Add a token behind the last id."""

    def edit(raw: dict[str, Any]) -> None:
        last = max(raw["added_tokens"], key=lambda token: token["id"])
        raw["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<|mine|>"})

    edit_json(path / TOKENIZER, edit)


def pad_rows(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat((tensors[name], torch.zeros(46, 48)))


def half(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})


def twin(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_PROJ] = tensors["model.layers.0.self_attn.q_proj.weight"].clone()


def retype(header: dict[str, Any]) -> None:
    header[NORM]["dtype"] = "I32"


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The habits of Hugging Face's stock template in our own words: dates by itself, tools in the first user message.
STOCK = """
{{- bos_token }}
{%- set tools_in_user_message = true %}
{%- set has_system = messages[0].role == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if builtin_tools is defined %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}
{{- messages[0].content if has_system else '' }}{{ '<|eot_id|>' }}
{%- for message in messages[1 if has_system else 0:] %}
    {{- '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) + '<|end_header_id|>\\n\\n' }}
    {%- if loop.first and tools %}{{- 'Functions: ' + tools | tojson + '\\n' }}{%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '{"name": "' + call.function.name + '", "parameters": ' + call.function.arguments | tojson + '}' }}
    {%- endfor %}
    {{- (message.content or '') + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

BROKEN = [
    Broken("no config", remove(CONFIG), {"config-missing"}),
    Broken("a config that is no JSON", write(CONFIG, b"{"), {"file-unreadable"}),
    Broken("another kind of model", config(model_type="mistral"), {"config-unsupported"}),
    Broken("a bias", config(attention_bias=True, hidden_act="gelu"), {"config-unsupported"}),
    Broken("code in config", config(auto_map={"AutoModel": "evil.Model"}), {"code-named"}),
    Broken("code in tokenizer_config", tokenizer_config(auto_map={"AutoTokenizer": ["evil.T", None]}), {"code-named"}),
    Broken("python beside", write("modeling.py", b"print()"), {"code-beside"}),
    Broken("a hidden program", write(".loader", b"\x7fELF\x02"), {"code-beside"}),
    Broken("a pickle beside", write("training_args.bin", b"\x80\x04."), {"pickle-beside"}),
    Broken("RoPE scaling lost", config(rope_scaling=None), {"rope-lost"}),
    Broken("an unknown RoPE", config(rope_scaling=ROPE | {"rope_type": "yarn"}), {"config-unsupported"}),
    Broken(
        "two spellings of RoPE",
        config(rope_parameters={**ROPE, "original_max_position_embeddings": 8192, "rope_theta": 1e4}),
        {"config-disagrees"},
    ),
    Broken("an unknown quantization", config(quantization_config={"quant_method": "awq"}), {"quantization-unknown"}),
    Broken("a dtype that is not stored", config(torch_dtype="float16"), {"dtype-differs"}),
    Broken("absurd sizes", config(vocab_size=2**31 - 1), {"config-unsupported", "vocab-differs"}),
    Broken("a billion layers", config(num_hidden_layers=10**9), {"tensor-missing"}),
    Broken("fewer layers than there are", config(num_hidden_layers=1), {"tensor-extra"}),
    Broken("another width", config(intermediate_size=96), {"tensor-shape"}),
    Broken("another vocabulary size", config(vocab_size=512), {"vocab-differs"}),
    Broken("no end of turn", both(config(eos_token_id=275), generation(eos_token_id=275)), {"stop-missing"}),
    Broken("no end of a call", both(config(eos_token_id=[283]), generation(eos_token_id=[283])), {"stop-incomplete"}),
    Broken("two opinions on eos", config(eos_token_id=[275]), {"stop-disagrees"}),
    Broken("an eos that is no id", both(remove(GENERATION), config(eos_token_id=["x"])),
           {"config-unsupported", "stop-missing"}),
    Broken("padding with eot", config(pad_token_id=283), {"pad-is-eos"}),
    Broken("padding with eos by name", tokenizer_config(pad_token="<|eot_id|>"), {"pad-is-eos"}),
    Broken(
        "no padding",
        both(*(without(name, "pad_token_id") for name in (CONFIG, GENERATION)), without(TOKENIZER_CONFIG, "pad_token")),
        {"pad-missing"},
    ),
    Broken("padding without a row", config(pad_token_id=99_999), {"id-out-of-range"}),
    Broken("no tokenizer", remove(TOKENIZER), {"tokenizer-missing"}),
    Broken("half a tokenizer", cut(TOKENIZER), {"file-unreadable"}),
    Broken("no eom", rename_special("<|eom_id|>", "<|other|>"), {"special-missing"}),
    Broken("an end of turn marked as text", flag_special("<|eot_id|>", special=False), {"special-as-text"}),
    Broken("an end of turn that takes in space", flag_special("<|eot_id|>", rstrip=True), {"special-strips"}),
    Broken(
        "an added token that is elsewhere in another file",
        tokenizer_config(added_tokens_decoder={"283": {"content": "<|eom_id|>", "special": True}}),
        {"added-disagrees"},
    ),
    Broken("an unknown pad token", tokenizer_config(pad_token="[PAD]"), {"special-unknown"}),
    Broken("a token too many", grow, {"vocab-differs"}),
    Broken("rows without a token", both(weights(pad_rows), config(vocab_size=576)), {"vocab-padded"}),
    Broken("bos twice by tokenizer", processor(lambda raw: raw["single"].insert(0, raw["single"][0])), {"bos-doubled"}),
    Broken("bos by flag and template", tokenizer_config(add_bos_token=True), {"bos-doubled"}),
    Broken("no bos by tokenizer", processor(lambda raw: raw["single"].pop(0)), {"bos-missing"}),
    Broken("bos twice by template", ours_with("'<|begin_of_text|>'", "'<|begin_of_text|><|begin_of_text|>'"),
           {"bos-doubled"}),
    Broken("no bos by template", ours_with("'<|begin_of_text|>'", "''"), {"template-bos-missing"}),
    Broken("no header for the answer", ours_with("{{- header('assistant') -}}{%- endif -%}", "{%- endif -%}"),
           {"template-differs"}),
    Broken("another end", template(CHAT_TEMPLATE.replace("eot_id", "eom_id")),
           {"template-differs", "template-tools-differ"}),
    Broken("ChatML", template(CHATML),
           {"template-differs", "template-tools-differ", "template-bos-missing", "template-mask-empty"}),
    Broken("the stock template's habits", template(STOCK),
           {"template-dates", "template-tools-differ", "template-mask-empty"}),
    Broken("no mask", template(CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")),
           {"template-mask-empty"}),
    Broken("no tools", template("{%- if tools or environment -%}{{- raise_exception('no tools') -}}{%- endif -%}"
           + CHAT_TEMPLATE), {"template-tools-fail"}),
    Broken("no system", template("{%- if messages[0].role == 'system' -%}{{- raise_exception('no') -}}{%- endif -%}"
           + CHAT_TEMPLATE), {"template-fails"}),
    Broken("no Jinja", template("{% if"), {"template-invalid"}),
    Broken("two templates", tokenizer_config(chat_template=CHATML), {"templates-disagree"}),
    Broken("no weights", remove(WEIGHTS), {"weights-missing"}),
    Broken("pickled weights", lambda path: (path / WEIGHTS).rename(path / "pytorch_model.bin"),
           {"weights-missing", "pickle-beside"}),
    Broken("weights cut short", cut(WEIGHTS), {"weights-unreadable"}),
    Broken("a file too many", lambda path: shutil.copy(path / WEIGHTS, path / "old.safetensors"), {"shard-unlisted"}),
    Broken("a tensor missing", weights(lambda tensors: tensors.pop(Q_PROJ)), {"tensor-missing"}),
    Broken("a tensor too many", weights(lambda tensors: tensors.update(x=torch.ones(2))), {"tensor-extra"}),
    Broken("a norm of integers", lambda path: edit_header(path / WEIGHTS, retype), {"tensor-dtype"}),
    Broken("two dtypes", weights(lambda tensors: tensors.update({NORM: tensors[NORM].half()})), {"dtype-mixed"}),
    Broken("another dtype", weights(half), {"dtype-differs"}),
    Broken("no head", weights(lambda tensors: tensors.pop("lm_head.weight")), {"head-missing"}),
    Broken("a head that is not tied", config(tie_word_embeddings=True), {"tie-broken"}),
    Broken("NaN", poke(Q_PROJ, float("nan")), {"value-nan"}),
    Broken("infinity", poke(Q_PROJ, float("inf")), {"value-infinite"}),
    Broken("zeros", fill(Q_PROJ, 0.0), {"value-zero"}),
    Broken("a norm of zeros", fill(NORM, 0.0), {"norm-zero"}),
    Broken("a constant", fill(Q_PROJ, 0.5), {"value-constant"}),
    Broken("the same matrix twice", weights(twin), {"value-twin"}),
    Broken("a link out", link_out(GENERATION), {"path-unsafe"}),
    Broken("a link to nowhere", lambda path: (path / "x.json").symlink_to("gone"), {"path-unsafe"}),
    Broken("a pipe", lambda path: os.mkfifo(path / "notes"), {"path-unsafe"}),
    Broken("somebody's manifest", write("manifest.json", b'{"name": "app"}'), {"manifest-foreign"}),
    Broken("a Llama by its README", write("README.md", b"---\nlicense: llama3.1\n---\n"), {"licence-missing"}),
]  # fmt: skip


def index(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda path: edit_json(path / INDEX, change)


def first_shard(path: Path) -> Path:
    return min(path.glob("model-*.safetensors"))


def swap_shards(raw: dict[str, Any]) -> None:
    files = sorted(set(raw["weight_map"].values()))
    raw["weight_map"][NORM] = next(file for file in files if file != raw["weight_map"][NORM])


def lead_out(raw: dict[str, Any]) -> None:
    first = min(raw["weight_map"].values())
    raw["weight_map"] = {name: "../x" if file == first else file for name, file in raw["weight_map"].items()}


BROKEN_SHARDS = [
    Broken("a shard missing", lambda path: first_shard(path).unlink(), {"shard-missing"}),
    Broken("a shard cut short", lambda path: cut(first_shard(path).name)(path), {"weights-unreadable"}),
    Broken("a tensor elsewhere", index(swap_shards), {"index-differs"}),
    Broken("a tensor not listed", index(lambda raw: raw["weight_map"].pop(NORM)), {"index-differs"}),
    Broken("a wrong total", index(lambda raw: raw["metadata"].update(total_size=1)), {"index-size"}),
    Broken("an index that leads out", index(lead_out), {"path-unsafe", "shard-unlisted"}),
    Broken("no index", remove(INDEX), {"weights-missing"}),
    Broken("an index that is no JSON", write(INDEX, b"["), {"weights-unreadable"}),
    Broken("an index without a map", write(INDEX, b"{}"), {"weights-unreadable"}),
]

HOSTILE = {
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escapes by a function": "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "imports": "{{ lipsum(n=2) }}",
    "loops for ever": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "eats memory": "{% set s = namespace(x='x' * 999) %}{% for i in range(99) %}{% set s.x = s.x + s.x %}{% endfor %}",
    "asks for a huge text": "{{ 'x' * 10 ** 11 }}",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text())
