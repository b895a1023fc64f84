#!/usr/bin/env bash
# Surprise: transformers 5.23 loads compressed-tensors files of int4 layers and an int8 head with `dequantize=True`, says
#   nothing, and the head is wrong: every weight is unpacked by the scheme of the first config group. With the int8 group
#   first it refuses the same files. Without `dequantize=True` both orders load right.
# Why it matters here: `puna quantize` writes such files (vocabulary = "head"). The groups are now written with the most
#   bits first, so that nobody gets wrong logits without a word.
# Source: run by us; get_dense_scheme in transformers/integrations/compressed_tensors.py. PYTHON names an interpreter that
#   has the packages already; without it they are installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    PYTHON="$folder/venv/bin/python"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check \
        torch==2.13.0 numpy transformers==5.23.0 compressed-tensors==0.20.0
fi
"$PYTHON" - "$folder" <<'PYTHON' 2>/dev/null
import json
import sys
from pathlib import Path

import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from transformers import CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

print(f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}")
folder, ids = Path(sys.argv[1]), torch.arange(20)[None]
torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=96)
LlamaForCausalLM(config).save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
plain = LlamaForCausalLM.from_pretrained(folder)
for name in [name for name in tensors if "_proj" in name or name == "lm_head.weight"]:
    bits, weight = 8 if "lm_head" in name else 4, tensors.pop(name)
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    values, base = (weight / scale).round().to(torch.int8), name.removesuffix("weight")
    tensors |= {f"{base}weight_packed": pack_to_int32(values, bits), f"{base}weight_scale": scale}
    tensors[f"{base}weight_shape"] = torch.tensor(weight.shape)
    plain.get_parameter(name).data = values * scale
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def group(bits, target):
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    return {"targets": [target], "weights": weights, "format": "pack-quantized"}


right, raw = plain(ids).logits, json.loads((folder / "config.json").read_text())
found = {}
for order in ((4, 8), (8, 4)):
    groups = [group(bits, "Linear" if bits == 4 else "re:.*lm_head$") for bits in order]
    told = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    told |= {"config_groups": {f"group_{number}": each for number, each in enumerate(groups)}, "ignore": []}
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": told}))
    for is_unpacked in (False, True):
        asked = CompressedTensorsConfig(dequantize=is_unpacked)
        try:
            theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=asked)
            share = ((theirs(ids).logits - right).std() / right.std()).item()
            answer = f"logits differ by {share:.1%} of their deviation"
        except RuntimeError:
            share, answer = None, "refused"
        found[order, is_unpacked] = share
        print(f"int{order[0]} group first, dequantize={is_unpacked}: {answer}")
assert found[(4, 8), False] < 0.01 and found[(8, 4), False] < 0.01
assert found[(4, 8), True] > 0.1 and found[(8, 4), True] is None, "the behaviour is gone"
PYTHON
