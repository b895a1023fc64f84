"""A GGUF file -> findings about keys, tensors, tokenizer, chat template and values.

For tensor types without a reader in Puna, for example most K-quants, only the check of values is left out.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from puna.formats.checkpoint.fields import Fields
from puna.formats.checkpoint.gguf.blocks import CHUNK_VALUES, KINDS, decode
from puna.formats.checkpoint.gguf.container import GgufFile, GgufTensor, KindError, Strings, read_gguf
from puna.formats.checkpoint.gguf.reader import parse_config, parse_sampling
from puna.formats.checkpoint.gguf.tensors import ROPE_FACTORS, gguf_name
from puna.formats.checkpoint.gguf.vocabulary import CONTROL, parse_tokenizer
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError, TokenizerError
from puna.planning.doctor.hf.added import describe_tokens, report_as_text
from puna.planning.doctor.hf.layout import expected_shapes
from puna.planning.doctor.hf.settings import check_rope
from puna.planning.doctor.hf.stops import PAD
from puna.planning.doctor.hf.vocabulary import check_specials
from puna.planning.doctor.report import Report, listed
from puna.planning.doctor.template import check_template
from puna.planning.doctor.values import Readable, check_values, scan

KEYS = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
ROPE_REMEDY = "Convert the model anew with a current program, from a config.json that has rope_scaling"
STOP_NAMES = ("eot_id", "eom_id", "end_of_text")


def check_gguf(path: Path, report: Report, console: Console, *, quick: bool) -> None:
    """Add all findings about a GGUF file; `quick` skips values of weights."""
    try:
        file = read_gguf(path)
    except CheckpointError as error:
        report.refuse("gguf-kind" if isinstance(error, KindError) else "weights-unreadable", path.name, error)
        return
    _tell(file, report)
    _check_kinds(file, report)
    config: LlamaConfig | None = None
    with report.attempt("gguf-unsupported", path.name):
        config = parse_config(file)
        report.facts["parameters"] = f"{config.num_parameters:,}"
        check_rope(config, "llama.rope.*", ROPE_REMEDY, report)
        _check_tensors(file, config, report)
    with report.attempt("gguf-unsupported", path.name):
        parse_sampling(file)
    if Fields(file.metadata, file.path).is_one_of("general.architecture", ("llama",)):
        _check_tokenizer(file, config, report)
    if not quick:
        tensors = {name: _readable(file, name, each) for name, each in file.tensors.items() if each.kind in KINDS}
        check_values(tensors, scan(tensors, report, console), report)


def _tell(file: GgufFile, report: Report) -> None:
    kinds = sorted({tensor.kind for tensor in file.tensors.values()})
    report.facts["weights"] = f"{len(file.data):,} bytes, {len(file.tensors):,} tensors, {', '.join(kinds)}"
    facts = {"context": "llama.context_length", "RoPE base": "llama.rope.freq_base", "name": "general.name"}
    for label, key in facts.items():
        value = file.metadata.get(key)
        if isinstance(value, str | int | float):
            report.facts[label] = ascii(value)[1:-1][:80] if isinstance(value, str) else f"{value:,}"


def _check_kinds(file: GgufFile, report: Report) -> None:
    counts = Counter(tensor.kind for tensor in file.tensors.values() if tensor.kind not in KINDS)
    if counts:
        shares = listed([f"{count:,} in {kind}" for kind, count in counts.most_common()])
        what = f"{shares} of {len(file.tensors):,} tensors; expected {', '.join(KINDS)}, whose values Puna reads"
        remedy = "Nothing for llama.cpp and what is built on it; for Puna take safetensors, or Q8_0, BF16 or F16"
        report.add("gguf-kind", file.path.name, what, remedy)


def _check_tensors(file: GgufFile, config: LlamaConfig, report: Report) -> None:
    """Compare names and shapes of tensors with the sizes in the metadata."""
    numbers = [name.split(".")[1] for name in file.tensors if name.startswith("blk.") and name.count(".") > 1]
    expected = {gguf_name(name): shape for name, shape in expected_shapes(config, numbers).items()}
    missing = sorted(expected.keys() - file.tensors.keys())
    extra = sorted(file.tensors.keys() - expected.keys() - {ROPE_FACTORS})
    wrong = [
        f"{name} is {list(file.tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in file.tensors and file.tensors[name].shape != shape
    ]
    remedy = "Copy the file again, or convert the model anew: its keys describe other tensors than it has"
    if missing:
        what = f"{listed(missing)} not in the file; expected {config.num_layers:,} layers with all their tensors"
        report.add("tensor-missing", "weights", what, remedy)
    if extra:
        report.add("tensor-extra", "weights", f"{listed(extra)}; expected only what the keys describe", remedy)
    if wrong:
        report.add("tensor-shape", "weights", listed(wrong), remedy)


def _check_tokenizer(file: GgufFile, config: LlamaConfig | None, report: Report) -> None:
    if f"{KEYS}model" not in file.metadata:
        remedy = "Convert the model anew from a directory that has its tokenizer"
        report.add("tokenizer-missing", f"{KEYS}model", "no tokenizer in the file", remedy)
    tokens = file.metadata.get(f"{KEYS}tokens")
    num_tokens = len(tokens) if isinstance(tokens, Strings) else 0
    if config and num_tokens and num_tokens != config.vocab_size:
        what = f"{num_tokens:,} tokens for {config.vocab_size:,} embeddings; expected as many"
        report.add("vocab-differs", KEYS + "tokens", what, "Convert the model anew: no program loads it like this")
    with report.attempt("gguf-unsupported", KEYS + "*"):
        if tokenizer := parse_tokenizer(file, num_tokens):
            report.facts["tokenizer"] = describe_tokens(tokenizer)
            check_specials(tokenizer, KEYS + "tokens", report)
            kinds = file.metadata[KEYS + "token_type"]
            as_text = [token.text for token in tokenizer.added if token.is_special and kinds[token.id] != CONTROL]
            report_as_text(as_text, KEYS + "token_type", f"type {CONTROL}", report)
            _check_ids(file, tokenizer, report)
            _check_chat(file, tokenizer, report)


def _check_ids(file: GgufFile, tokenizer: Tokenizer, report: Report) -> None:
    ids = {role: file.metadata.get(f"{KEYS}{role}_token_id") for role in ("bos", "eos", "eot", "eom", "padding")}
    beyond = [f"{role} = {value!a:.30}" for role, value in ids.items() if not _is_id(value, tokenizer)]
    remedy = "Convert the model anew, or set the key with a GGUF editor"
    if beyond:
        what = f"{listed(beyond)}; expected ids below {tokenizer.vocab_size:,}"
        report.add("id-out-of-range", KEYS + "*_token_id", what, remedy)
    ids = {role: value if type(value) is int else None for role, value in ids.items()}
    stops = {tokenizer.special_ids[name]: name for name in STOP_NAMES if name in tokenizer.special_ids}
    eot = tokenizer.special_ids.get("eot_id")
    if ids["eos"] not in stops:
        what = f"eos is {ids['eos']!a:.30}; expected one of {', '.join(map(str, stops))}"
        report.add("stop-missing", KEYS + "eos_token_id", what, remedy)
    elif TEMPLATE_KEY in file.metadata and eot not in (ids["eos"], ids["eot"]):
        what = f"neither eos nor eot is {eot}, <|eot_id|>; llama.cpp finds it by its name, other programs run on"
        report.add("stop-incomplete", KEYS + "eot_token_id", what, remedy)
    if ids["padding"] in stops:
        what = f"padding is {ids['padding']} (<|{stops[ids['padding']]}|>), a stop token"
        report.add("pad-is-eos", KEYS + "padding_token_id", what, f"Take {PAD} for padding")


def _is_id(value: Any, tokenizer: Tokenizer) -> bool:
    return value is None or (type(value) is int and 0 <= value < tokenizer.vocab_size)


def _check_chat(file: GgufFile, tokenizer: Tokenizer, report: Report) -> None:
    template = file.metadata.get(TEMPLATE_KEY)
    writes = isinstance(template, str) and ("<|begin_of_text|>" in template or "bos_token" in template)
    if file.metadata.get(f"{KEYS}add_bos_token") is False and not writes:
        what = "add_bos_token is off, and no chat template writes begin_of_text"
        report.add("bos-missing", KEYS + "add_bos_token", what, "Set add_bos_token: a Llama 3 answers worse without it")
    if template is None:
        report.facts["chat template"] = "none; a base model"
        return
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    try:
        check_template(template, tokenizer, roles, TEMPLATE_KEY, report, marks=False)
    except TokenizerError:
        return  # Missing special tokens are reported already, and ChatFormat needs all of them.


def _readable(file: GgufFile, name: str, tensor: GgufTensor) -> Readable:
    num_values = tensor.num_bytes // KINDS[tensor.kind].block_bytes * KINDS[tensor.kind].block_len
    return Readable(name, tensor.kind, tensor.shape, num_values, partial(_pieces, file, name, tensor))


def _pieces(file: GgufFile, name: str, tensor: GgufTensor) -> Iterator[torch.Tensor]:
    content, kind = file.content(name), KINDS[tensor.kind]
    num_blocks = max(1, CHUNK_VALUES // kind.block_len)
    step = num_blocks * kind.block_bytes
    for start in range(0, len(content), step):
        piece = content[start : start + step]
        yield decode(piece, tensor.kind, (len(piece) // kind.block_bytes * kind.block_len,))
