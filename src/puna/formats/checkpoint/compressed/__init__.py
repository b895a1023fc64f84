"""Quantized weights in the `compressed-tensors` format: schemes by module, and names of stored tensors."""
