"""The Llama network: sizes, layers, kernels, quantization and adapters. Reads no files."""
