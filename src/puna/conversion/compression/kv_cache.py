"""A model and held-out text -> comparison of predictions with an int8 KV cache and with the usual KV cache.

The serving runner computes both, with a paged cache and PIECE tokens at a time: all but the newest keys and values
come from the cache.
"""

from array import array
from collections.abc import Sequence
from pathlib import Path

import torch

from puna.inference.engine.cache.paged_cache import num_pages_for
from puna.inference.engine.runners.opening import open_runner
from puna.inference.engine.runners.runner import Runner, Span
from puna.model.compare import Comparison, require_finite
from puna.model.llama import Llama
from puna.pipeline.progress import Progress

# Number of tokens in a forward pass.
PIECE = 64


@torch.inference_mode()
def compare_caches(
    model: Llama, name: Path, texts: Sequence[list[int]], dtype: torch.dtype, bar: Progress
) -> Comparison:
    """Compare an int8 KV cache with the usual KV cache; `name` is the checkpoint's path for error messages."""
    num_pages = num_pages_for(max(map(len, texts)))
    runners = [open_runner(model, num_pages, dtype, is_int8_cache=is_int8) for is_int8 in (False, True)]
    comparison = Comparison()
    for ids in texts:
        comparison.add(*(_paged_logits(runner, ids, name) for runner in runners), ids=ids)
        bar.advance(len(ids))
    return comparison


def _paged_logits(runner: Runner, ids: list[int], name: Path) -> torch.Tensor:
    table, parts = array("i", range(num_pages_for(len(ids)))), []
    for start in range(0, len(ids), PIECE):
        tokens = ids[start : start + PIECE]
        parts.append(runner.forward(tokens, [Span(table, start, len(tokens))], range(len(tokens))))
    return require_finite(runner.logits(torch.cat(parts)), name)
