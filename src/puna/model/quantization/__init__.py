"""Quantization schemes, and linear layers and embeddings with quantized weights."""
