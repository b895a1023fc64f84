"""A published shape and a form -> a model of random weights on disk, written once: a checkpoint, or a GGUF file."""

import json
import sys
import zlib
from pathlib import Path

import tokenizers
import torch

from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint, write_checkpoint
from puna.formats.checkpoint.gguf.container import read_gguf
from puna.formats.checkpoint.gguf.writer import write_gguf
from puna.formats.checkpoint.source import Source, tensor_shapes
from puna.formats.tokenizer import Tokenizer, train_tokenizer
from puna.formats.tokenizer.added import special_tokens
from puna.model.config import SIZES
from puna.model.quantization.quantized import round_linears, rounded
from puna.model.quantization.scheme import Scheme

CHECKPOINT_FORMS = ("bf16", "int8", "int4")
BITS = {"int4": 4, "int8": 8}


def prepare(folder: Path, size: str, form: str) -> Path:
    """Return the model in this form, written if it is not there yet."""
    path = folder / (f"{size}-{form}" if form in CHECKPOINT_FORMS else f"{size}-{form}.gguf")
    if path.exists():
        return path
    print(f"writing {path.name}", file=sys.stderr)
    part = path.with_name(f"part-{path.name}")
    if form in CHECKPOINT_FORMS:
        part.mkdir(parents=True)
    if form == "bf16":
        write_checkpoint(part, random_source(size))
    elif form in BITS:
        _write_quantized(prepare(folder, size, "bf16"), part, BITS[form])
    elif form == "Q4_K_M":
        _quantize_by_llama_cpp(prepare(folder, size, "F16"), part)
    else:
        write_gguf(part, random_source(size), kind=form, name="random", template="")  # type: ignore[arg-type]
    part.rename(path)
    return path


def decoded_bytes(path: Path) -> int:
    """Return how many bytes of weights decoding one token reads: of a table that is not the head as well, one row."""
    if path.is_dir():
        layout = Checkpoint.open(path).layout
        is_tied = not any(name.startswith("lm_head.") for name in layout)
        sizes = {name: stored.end - stored.start for name, stored in layout.items()}
        return sum(size for name, size in sizes.items() if is_tied or not name.startswith("model.embed_tokens."))
    file = read_gguf(path)
    is_tied = "output.weight" not in file.tensors
    return sum(file.content(name).nbytes for name in file.tensors if is_tied or name != "token_embd.weight")


def random_source(size: str) -> Source:
    """Return a model whose tensors are drawn as they are asked for, in bfloat16."""
    config = SIZES[size]
    shapes = tensor_shapes(config)

    def read(name: str) -> torch.Tensor:
        if len(shapes[name]) == 1:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)

    return Source("random", config, torch.bfloat16, read, _tokenizer())


def _tokenizer() -> Tokenizer:
    """Return Llama 3's own where llama-models is installed, else a small one: ids are all that is needed here."""
    try:
        import llama_models
    except ModuleNotFoundError:
        return train_tokenizer(["some words and more words"] * 2, vocab_size=520, split_digits=False)
    return Tokenizer.load(Path(llama_models.__file__).parent / "llama3" / "tokenizer.model")


def wide_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a small tokenizer with a token for each of `vocab_size` ids: the engine leaves out rows without one."""
    small = train_tokenizer(["some words and more words"] * 2, vocab_size=520, split_digits=False)
    rows = special_tokens({f"<|row {index}|>": index for index in range(small.vocab_size, vocab_size)})
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(small.to_json())), (*small.added, *rows))


def _write_quantized(source: Path, path: Path, bits: int) -> None:
    """Layers in `bits`, in groups of 128; embeddings and head in 8 bits, one scale a row."""
    checkpoint = Checkpoint.open(source)
    model = checkpoint.load()
    round_linears(model, Scheme("int", bits, 128))
    model.embed_tokens = rounded(model.embed_tokens, Scheme("int", 8))  # type: ignore[assignment]
    if model.lm_head is not None:
        model.lm_head = rounded(model.lm_head, Scheme("int", 8))  # type: ignore[arg-type]
    save_checkpoint(path, model, checkpoint.tokenizer(), like=checkpoint.source())


def _quantize_by_llama_cpp(source: Path, path: Path) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params) == 0
