#!/bin/sh
# Surprise: PEFT reads its own adapter otherwise than it trained it. Of two keys of rank_pattern or alpha_pattern that match
#   a module the first one counts, and save_pretrained writes the keys sorted. After saving and loading another key is the
#   first: with rank_pattern the load fails with a size mismatch, with alpha_pattern another scale is used, without a word.
# Why it matters here: a general key after a special one is how people write such tables. `puna merge` follows the file, as
#   PEFT does when it loads, says so in its log where the values differ, and refuses ranks that do not fit with this reason.
# Source: run by us; peft/config.py (json.dumps(..., sort_keys=True)) and peft/utils/other.py (get_pattern_key).
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

folder = Path(sys.argv[1])
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
config = transformers.LlamaConfig(**sizes, num_key_value_heads=2)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
ids = torch.arange(20)[None]
keys = {r"layers\.1\.self_attn\.q_proj": 1, r".*\.q_proj": 4}  # sorted, the second comes first
found = {}
for field in ("rank_pattern", "alpha_pattern"):
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    settings = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False, **{field: keys})
    model = peft.get_peft_model(base, settings).eval()
    model.save_pretrained(str(folder / field))
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    try:
        loaded = peft.PeftModel.from_pretrained(base, str(folder / field)).eval()
        with torch.no_grad():
            difference = (loaded(ids).logits - model(ids).logits).abs().max().item()
        found[field] = "other logits" if difference > 1e-4 else "the same logits"
        print(f"peft {peft.__version__}, {field}: loaded, logits differ by up to {difference:.2g}")
    except RuntimeError as error:
        found[field] = "size mismatch" if "size mismatch" in str(error) else "another error"
        print(f"peft {peft.__version__}, {field}: {found[field]} on loading what was saved")
sys.exit(found != {"rank_pattern": "size mismatch", "alpha_pattern": "other logits"})
PYTHON
