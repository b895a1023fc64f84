"""Models as other libraries write them, in settings that are drawn: transformers, gguf-py and compressed-tensors.

Each writer returns what the same library, or transformers, computes from its files.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import compressed_tensors
import gguf
import numpy as np
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

from puna.formats.chat.template import PLAIN_TEMPLATE
from puna.testing.tiny_checkpoint import WEIGHTS, edit_json, tokenizer

IDS = torch.arange(24) * 7 % 250
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GGUF_KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
# Texts with characters of one byte and of several, with space in and around them.
ADDED = ("<order>", "</order>", "[T]", " tab\t", "日本", "über", "\n\n\n", "<|mark|>", "x y")
QUANTIZED = {"int4": (4, 32), "int4 rows": (4, None), "int8": (8, None), "int8 groups": (8, 64)}


@dataclass(frozen=True)
class Setting:
    """What is drawn for one model; `str` gives the settings for a message.

    Attributes:
        tied: the head is the embeddings.
        added: text tokens, then special ones, behind the vocabulary.
        multiple: rows of the embeddings are padded to a multiple of it.
    """

    seed: int
    tied: bool
    dtype: str
    sharded: bool
    added: tuple[str, ...]
    special: tuple[str, ...]
    multiple: int
    scaled_rope: bool
    kind: str
    schemes: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int) -> "Setting":
        source = random.Random(seed)
        texts = source.sample(ADDED, source.randrange(5))
        cut = source.randrange(len(texts) + 1)
        return cls(
            seed, source.random() < 0.4, source.choice(list(DTYPES)), source.random() < 0.5, tuple(texts[:cut]),
            tuple(texts[cut:]), source.choice((1, 64, 128)), source.random() < 0.5, source.choice(GGUF_KINDS),
            tuple(source.choices(list(QUANTIZED), k=source.choice((1, 2)))),
        )  # fmt: skip

    def __str__(self) -> str:
        return str(asdict(self))


def grown_tokenizer(setting: Setting, path: Path) -> Any:
    """Return transformers' tokenizer of the tiny vocabulary, with the added tokens, and save it."""
    path.mkdir(exist_ok=True)
    tokenizer().save(path)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    theirs.add_tokens(list(setting.added))
    theirs.add_tokens(list(setting.special), special_tokens=True)
    theirs.save_pretrained(path)
    return theirs


def random_model(setting: Setting, num_tokens: int) -> Any:
    """Return a random Llama of transformers whose embeddings were resized to the tokenizer's length."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=530, max_position_embeddings=16_384, rms_norm_eps=1e-5, initializer_range=0.1,
        tie_word_embeddings=setting.tied, bos_token_id=274, eos_token_id=[275, 282, 283], pad_token_id=278,
        rope_parameters={"rope_theta": 500_000.0, **(rope if setting.scaled_rope else {"rope_type": "default"})},
    )  # fmt: skip
    torch.manual_seed(setting.seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.resize_token_embeddings(num_tokens, pad_to_multiple_of=setting.multiple)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[setting.dtype])  # `to` would round the frequencies of RoPE too
    return model.eval()


def by_transformers(path: Path, setting: Setting) -> torch.Tensor:
    """Save model and tokenizer with save_pretrained."""
    theirs = grown_tokenizer(setting, path)
    model = random_model(setting, len(theirs))
    model.save_pretrained(path, max_shard_size="100KB" if setting.sharded else "1GB")
    return logits_of(transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32))


def by_gguf_py(path: Path, setting: Setting) -> torch.Tensor:
    """Write model.gguf with GGUFWriter and the keys that llama.cpp's converter writes."""
    theirs = grown_tokenizer(setting, path)
    model = random_model(setting, len(theirs)).float()
    writer = gguf.GGUFWriter(path / "model.gguf", "llama")
    _add_settings(writer, model.config)
    _add_vocabulary(writer, theirs, model.config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and setting.tied:
            continue
        kind = gguf.GGMLQuantizationType[setting.kind if tensor.dim() > 1 else "F32"]
        values = _permuted(name, tensor, model.config).numpy()
        stored = gguf.quants.quantize(values, kind)
        with torch.no_grad():
            kept = torch.from_numpy(gguf.quants.dequantize(stored, kind).reshape(values.shape).copy())
            tensor.copy_(_permuted(name, kept, model.config, is_back=True))
        writer.add_tensor(names.get_name(name, (".weight",)) or name, stored, raw_dtype=kind)
    if setting.scaled_rope:
        # Divisors of the frequencies, as the converter computes them from config.json.
        inverse = model.model.rotary_emb.inv_freq
        plain = 1 / 500_000.0 ** (torch.arange(0, 32, 2) / 32)
        writer.add_tensor("rope_freqs.weight", (plain / inverse).numpy().astype(np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return logits_of(model)


def _add_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_vocabulary(writer: gguf.GGUFWriter, theirs: Any, num_rows: int) -> None:
    """Type each token as llama.cpp's converter does: by `special` of the added ones, and padding as unused."""
    texts = {index: text for text, index in theirs.get_vocab().items()}
    added = theirs.added_tokens_decoder
    kinds = [
        gguf.TokenType.UNUSED if index not in texts
        else gguf.TokenType.NORMAL if index not in added
        else gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        for index in range(num_rows)
    ]  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smaug-bpe")
    writer.add_token_list([texts.get(index, f"[PAD{index}]") for index in range(num_rows)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer().to_json()["model"]["merges"]])
    writer.add_bos_token_id(theirs.bos_token_id)
    writer.add_eos_token_id(theirs.eos_token_id)
    writer.add_pad_token_id(theirs.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(PLAIN_TEMPLATE)


def _permuted(name: str, tensor: torch.Tensor, config: Any, *, is_back: bool = False) -> torch.Tensor:
    """Return q and k rows in GGUF's order of pairs, or back in halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
    if not heads:
        return tensor
    halves = (heads, -1, 2) if is_back else (heads, 2, -1)
    return tensor.reshape(*halves, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


def by_compressed_tensors(path: Path, setting: Setting) -> torch.Tensor:
    """Round and pack attention in the first scheme and the rest in the last one, with that library's own code."""
    theirs = grown_tokenizer(setting, path)
    model = random_model(setting, len(theirs))
    model.save_pretrained(path)
    tensors, groups = load_file(path / WEIGHTS), {}
    patterns = {"re:.*self_attn.*": setting.schemes[0], r"re:.*mlp\.(gate|up|down)_proj$": setting.schemes[-1]}
    for number, (target, scheme) in enumerate(patterns.items()):
        bits, size = QUANTIZED[scheme]
        told = {"num_bits": bits, "type": "int", "symmetric": True, "group_size": size}
        args = QuantizationArgs.model_validate(told | {"strategy": "group" if size else "channel"})
        part = "self_attn" if "self_attn" in target else "mlp"
        for name in [name for name in tensors if f"{part}." in name]:
            _pack(tensors, name, args)
        groups[f"group_{number}"] = QuantizationScheme(targets=[target], weights=args)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    about = {"format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"]}
    config = QuantizationConfig.model_validate(about | {"config_groups": groups})
    told = config.model_dump(mode="json") | {"version": compressed_tensors.__version__}
    edit_json(path / "config.json", lambda raw: raw.update(quantization_config=told))
    return logits_of(transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32))


def _pack(tensors: dict[str, torch.Tensor], name: str, args: QuantizationArgs) -> None:
    weight = tensors.pop(name).float()
    groups = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    values = quantize(weight, scale, zero, args, dtype=torch.int8)
    base = name.removesuffix("weight")
    tensors[f"{base}weight_packed"] = pack_to_int32(values, args.num_bits or 0)
    tensors[f"{base}weight_scale"] = scale
    tensors[f"{base}weight_shape"] = torch.tensor(weight.shape)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS[None]).logits[0].float()


WRITERS: dict[str, Callable[[Path, Setting], torch.Tensor]] = {
    "transformers": by_transformers,
    "gguf": by_gguf_py,
    "compressed-tensors": by_compressed_tensors,
}
