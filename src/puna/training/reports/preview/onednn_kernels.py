"""LlamaConfig, a training run and batches -> the matrix products that oneDNN compiles on a CPU: arithmetic alone.

In bfloat16 oneDNN compiles a kernel for every product shape and caches up to 1,024 kernels, half a megabyte per kernel.
A small network has a few megabytes of weights, but dozens of megabytes of kernels. The shapes follow from the padded
batches: model/gradients pads tokens and lays attention on a grid, so that few shapes recur.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from puna.model.config import LlamaConfig, layer_shapes
from puna.model.gradients.blocks import block_spans
from puna.model.gradients.padding import TOKENS_STEP
from puna.planning.plan.training import CHUNK_VALUES, Training

# Growth of the heap in use for each kernel: 0.52 to 0.57 MB were measured (AVX-512 with bfloat16, torch 2.13).
KERNEL_BYTES = 550_000
# (kind, rows, inputs, outputs): a product of equal sizes with another memory layout has another kernel.
Product = tuple[str, int, int, int]
# (lengths of the examples, number of trained tokens) of a batch.
BatchShape = tuple[Sequence[int], int]


def compiles_products(device: torch.device) -> bool:
    """Tell whether oneDNN computes bfloat16 products on this device."""
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compiled_products(widths: LlamaConfig, training: Training, batches: Iterable[BatchShape]) -> set[Product]:
    """Return the shapes of all products of a forward and backward pass over the batches.

    Example:
        >>> first = compiled_products(SIZES["1b"], training, [((512, 512), 300)])
        >>> later = compiled_products(SIZES["1b"], training, batches) - first
    """
    if training.precision == "float32":
        return set()  # the BLAS library computes float32 products and compiles no kernel
    products: set[Product] = set()
    for lengths, num_trained in batches:
        padded = -(-sum(lengths) // TOKENS_STEP) * TOKENS_STEP
        missing = padded - sum(lengths)
        products |= set(_layer_products(widths, training, padded))
        products |= set(_attention_products(widths, (*lengths, missing) if missing else lengths))
        products |= set(_head_products(widths, training, num_trained))
    return products


def _layer_products(widths: LlamaConfig, training: Training, num_rows: int) -> Iterator[Product]:
    is_full = training.lora_rank is None
    for target, (out_dim, in_dim) in layer_shapes(widths).items():
        yield from _linear(num_rows, in_dim, out_dim, is_trained=is_full)
        if training.lora_rank is not None and target in training.targets:
            yield from _linear(num_rows, in_dim, training.lora_rank, is_trained=True)
            yield from _linear(num_rows, training.lora_rank, out_dim, is_trained=True)


def _linear(num_rows: int, in_dim: int, out_dim: int, *, is_trained: bool) -> Iterator[Product]:
    yield "forward", num_rows, in_dim, out_dim
    yield "input", num_rows, out_dim, in_dim
    if is_trained:
        yield "weight", out_dim, num_rows, in_dim


def _attention_products(widths: LlamaConfig, lengths: Sequence[int]) -> Iterator[Product]:
    """Yield the products of attention's backward pass; the forward pass is torch's own kernel."""
    grouped = widths.num_heads // widths.num_kv_heads
    for first, start, end in block_spans(lengths):
        queries, keys = grouped * (end - start), end - first
        yield "scores", queries, widths.head_dim, keys
        yield "keys", keys, queries, widths.head_dim
        yield "queries", queries, keys, widths.head_dim


def _head_products(widths: LlamaConfig, training: Training, num_trained: int) -> Iterator[Product]:
    size = max(1, CHUNK_VALUES // widths.vocab_size)
    size -= size % TOKENS_STEP if size > TOKENS_STEP else 0
    whole, rest = divmod(num_trained, size)
    rows = {size} if whole else set()
    rows |= {-(-rest // TOKENS_STEP) * TOKENS_STEP} if rest else set()
    for num_rows in rows:
        yield from _linear(num_rows, widths.dim, widths.vocab_size, is_trained=training.lora_rank is None)
