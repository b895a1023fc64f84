"""Quantized weights as the `compressed-tensors` format has them: which module in which scheme, under which names."""
