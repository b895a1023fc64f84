"""Meta's own network over directories in Meta's format: python meta_reference.py OUT.safetensors DIRECTORY...

A process of its own, since the reference sets torch's default dtype and wants a process group. Writes the logits of
TOKENS that each directory gives, in float32.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

TOKENS = [128_000, 9906, 1917, 11, 420, 374, 264, 1296, 315, 279, 5509, 13, 128_009, 882, 271, 17, 220, 3]


def main(out: str, *directories: str) -> None:
    from fairscale.nn.model_parallel.initialize import initialize_model_parallel

    with tempfile.NamedTemporaryFile() as meeting:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting.name}", rank=0, world_size=1)
        initialize_model_parallel(1)
        save_file({directory: logits_of(Path(directory)) for directory in directories}, out)
        torch.distributed.destroy_process_group()


def logits_of(directory: Path) -> torch.Tensor:
    from llama_models.checkpoint import maybe_reshard_state_dict
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    params = json.loads((directory / "params.json").read_text())
    arguments = ModelArgs(max_seq_len=64, max_batch_size=1, **params)
    assert arguments.n_kv_heads
    weights = maybe_reshard_state_dict(list(directory.glob("*.pth")), n_kv_heads=arguments.n_kv_heads)
    torch.set_default_dtype(torch.float32)
    model = Transformer(arguments)
    model.load_state_dict(weights, strict=True)
    return model(torch.tensor([TOKENS]), 0)[0].contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
