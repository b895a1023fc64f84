#!/bin/sh
# Surprise: after resize_token_embeddings, an adapter with LoRA on embed_tokens is saved with the grown embeddings and
#   without the grown head, where head and embeddings are two tables. The head's new rows are in no file: loaded again,
#   the model gives the new tokens other logits. Without LoRA on embed_tokens PEFT saves both tables.
# Why it matters here: adding tokens and training their embeddings by LoRA is an ordinary recipe. `puna merge` refuses such
#   an adapter and says what to save (modules_to_save with both); a head of random rows would be a silent fault.
# Source: run by us; peft/utils/save_and_load.py, get_peft_model_state_dict ("or it is targeted and therefore has a valid
#   base layer": a head that is not targeted is left out as soon as the embeddings are).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON' 2>/dev/null
import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

folder = Path(sys.argv[1])
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=False)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")


def grown():
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    model.resize_token_embeddings(67, mean_resizing=False)
    return model


found = {}
for targets in (["q_proj"], ["q_proj", "embed_tokens"]):
    model = peft.get_peft_model(grown(), peft.LoraConfig(target_modules=targets)).eval()
    name = "+".join(targets)
    model.save_pretrained(str(folder / name))
    heads = [key for key in load_file(folder / name / "adapter_model.safetensors") if "lm_head" in key]
    loaded = peft.PeftModel.from_pretrained(grown(), str(folder / name)).eval()
    with torch.no_grad():
        ids = torch.arange(20)[None]
        difference = (loaded(ids).logits - model(ids).logits)[..., 64:].abs().max().item()
    found[name] = bool(heads)
    print(f"peft {peft.__version__}, LoRA on {name}: head saved: {bool(heads)}; new logits differ by {difference:.2g}")
sys.exit(found != {"q_proj": True, "q_proj+embed_tokens": False})
PYTHON
