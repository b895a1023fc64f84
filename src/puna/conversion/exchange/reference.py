"""A request on standard input -> logits of Meta's reference model, in a safetensors file.

peers.py runs this file as a child process, since the reference changes torch's default dtype and process group. The
reference unpickles weights: use only files that Puna wrote.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main() -> None:
    """Read {"path", "out", "pieces", "dtype"} from standard input and write the logits of piece n as tensor "n"."""
    from fairscale.nn.model_parallel import initialize  # pyright: ignore[reportMissingImports]
    from llama_models.checkpoint import maybe_reshard_state_dict
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    request = json.load(sys.stdin)
    directory, dtype = Path(request["path"]), getattr(torch, request["dtype"])
    meeting = Path(request["out"]).with_suffix(".meeting")
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    initialize.initialize_model_parallel(1)
    params = json.loads((directory / "params.json").read_text(encoding="utf-8"))
    longest = max(len(ids) for ids in request["pieces"])
    args = ModelArgs(max_seq_len=longest, max_batch_size=1, **params)
    state = maybe_reshard_state_dict(sorted(directory.glob("*.pth")), n_kv_heads=args.n_kv_heads or args.n_heads)
    torch.set_default_dtype(dtype)
    torch.set_default_device("cpu")
    model = Transformer(args)
    model.load_state_dict(state, strict=True)
    logits = {str(index): model(torch.tensor([ids]), 0)[0] for index, ids in enumerate(request["pieces"])}
    save_file({name: tensor.float().contiguous() for name, tensor in logits.items()}, request["out"])


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
