#!/bin/sh
# Surprise: transformers 5 refuses a Llama of width 64 with 6 heads of 32 ("hidden size is not a multiple of the number
#   of attention heads"), though its config states head_dim, from which every matrix gets its shape. transformers 4
#   loads the same config.
# Why it matters here: pruning heads and width apart easily leaves such a shape. llama.cpp reads it; the demo's own
#   release could not be loaded by transformers. `puna prune` now chooses widths that are a multiple of the heads.
# Source: run by us; LlamaConfig.validate_architecture in transformers/models/llama/configuration_llama.py.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.1 5.23.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
    "$folder/$version/bin/python" - <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version

from transformers import LlamaConfig

release = version("transformers")
sizes = dict(hidden_size=64, num_attention_heads=6, num_key_value_heads=3, head_dim=32, num_hidden_layers=4)
try:
    config = LlamaConfig(**sizes)
    answer = f"accepted, head_dim {config.head_dim}"
except Exception as error:
    answer = "refused: " + " ".join(str(error).split())[-90:]
print(f"transformers {release}: {answer}")
sys.exit(answer.startswith("refused") != release.startswith("5"))
PYTHON
done
