"""A GGUF file -> findings about its keys, tensors, tokenizer, chat template and values."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from puna.checkpoint.gguf.blocks import CHUNK_VALUES, KINDS, decode
from puna.checkpoint.gguf.container import GgufFile, GgufTensor, read_gguf
from puna.checkpoint.gguf.layout import ROPE_FACTORS
from puna.checkpoint.gguf.reader import open_gguf
from puna.doctor.directory.settings import LLAMA3_THETA, OLD_CONTEXT
from puna.doctor.directory.stops import PAD
from puna.doctor.directory.vocabulary import check_specials
from puna.doctor.finding import Report, listed
from puna.doctor.template import check_template
from puna.doctor.values import Readable, check_values, scan
from puna.errors import CheckpointError, TokenizerError
from puna.tokenizer.tokenizer import Tokenizer

KEYS = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
STOP_NAMES = ("eot_id", "eom_id", "end_of_text")


def check_gguf(path: Path, report: Report, console: Console, *, quick: bool) -> None:
    """Add all findings about a GGUF file; `quick` leaves out the weights' values."""
    try:
        file = read_gguf(path)
    except CheckpointError as error:
        code = "gguf-kind" if " is stored as " in error.given else "weights-unreadable"
        report.refuse(code, path.name, error)
        return
    _tell(file, report)
    tokenizer: Tokenizer | None = None
    with report.attempt("gguf-unsupported", path.name):
        source = open_gguf(path)
        tokenizer = source.tokenizer
        report.facts["parameters"] = f"{source.config.num_parameters:,}"
    if f"{KEYS}model" not in file.metadata:
        remedy = "Convert the model anew from a directory that has its tokenizer"
        report.add("tokenizer-missing", f"{KEYS}model", "no tokenizer in the file", remedy)
    with report.attempt("file-unreadable", "keys"):
        _check_rope(file, report)
    if tokenizer:
        with report.attempt("file-unreadable", "tokenizer"):
            check_specials(tokenizer, KEYS + "tokens", report)
            _check_ids(file, tokenizer, report)
            _check_chat(file, tokenizer, report)
    if not quick:
        tensors = {name: _readable(file, name, tensor) for name, tensor in file.tensors.items()}
        check_values(tensors, scan(tensors, report, console), report)


def _tell(file: GgufFile, report: Report) -> None:
    kinds = sorted({tensor.kind for tensor in file.tensors.values()})
    report.facts["weights"] = f"{len(file.data):,} bytes, {len(file.tensors):,} tensors, {', '.join(kinds)}"
    told = {"context": "llama.context_length", "RoPE base": "llama.rope.freq_base", "name": "general.name"}
    for label, key in told.items():
        value = file.metadata.get(key)
        if isinstance(value, str | int | float):
            report.facts[label] = ascii(value)[1:-1][:80] if isinstance(value, str) else f"{value:,}"


def _check_rope(file: GgufFile, report: Report) -> None:
    context, theta = (file.metadata.get(f"llama.{name}") for name in ("context_length", "rope.freq_base"))
    is_long = isinstance(context, int) and context > OLD_CONTEXT and theta == LLAMA3_THETA
    if is_long and ROPE_FACTORS not in file.tensors:
        what = f"a context of {context:,} on base 500,000 without {ROPE_FACTORS}; expected Llama 3.1's scaling"
        remedy = "Convert the model anew with a current program, from a config.json that has rope_scaling"
        report.add("rope-lost", ROPE_FACTORS, what, remedy)


def _check_ids(file: GgufFile, tokenizer: Tokenizer, report: Report) -> None:
    ids = {role: file.metadata.get(f"{KEYS}{role}_token_id") for role in ("bos", "eos", "eot", "eom", "padding")}
    beyond = [f"{role} = {value!a:.30}" for role, value in ids.items() if not _is_id(value, tokenizer)]
    remedy = "Convert the model anew, or set the key with a GGUF editor"
    if beyond:
        what = f"{listed(beyond)}; expected ids below {tokenizer.vocab_size:,}"
        report.add("id-out-of-range", KEYS + "*_token_id", what, remedy)
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
        return  # The special tokens that are missing have been reported; without them there is no format.


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
