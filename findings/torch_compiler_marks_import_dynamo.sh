#!/bin/sh
# Surprise: a decorator that only marks a function for torch.compile imports the whole compiler. One
#   `@torch.compiler.assume_constant_result` (or `disable`, `allow_in_graph`) at the head of a module loads torch._dynamo
#   and hundreds of modules with it (sympy and torch._inductor among them), about as long as `import torch` itself takes,
#   in programs that never compile anything. `import torch` and `torch.compiler.is_compiling()` load none of it.
# Why it matters here: one such line in model/quantization/float8.py took a third to a half of the start of every verb (2.6 -> 1.4 s of
#   CPU time). The mark can be set by the same call right before torch.compile: inference/engine/runners/decode_step.py.
# Source: torch/compiler/__init__.py, `import torch._dynamo` within each of these functions.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import sys, time

def measured(step):
    modules, start = set(sys.modules), time.process_time()
    step()
    return time.process_time() - start, len(set(sys.modules) - modules)

def import_torch():
    import torch  # noqa: F401

base = measured(import_torch)
import torch

print("torch", torch.__version__)
print(f"import torch:           {base[0]:.2f} s of CPU time, {base[1]} modules; _dynamo: {'torch._dynamo' in sys.modules}")
torch.compiler.is_compiling()
is_late = "torch._dynamo" not in sys.modules
mark = measured(lambda: torch.compiler.assume_constant_result(lambda: 1))
print(f"assume_constant_result: {mark[0]:.2f} s of CPU time, {mark[1]} modules; _dynamo: {'torch._dynamo' in sys.modules}")
holds = is_late and "torch._dynamo" in sys.modules and mark[1] > 100
print("the behaviour holds" if holds else "the behaviour is gone")
sys.exit(not holds)
PYTHON
