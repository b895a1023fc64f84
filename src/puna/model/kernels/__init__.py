"""Kernels: a Llama's step on a CPU in C++, compiled at first use, each function beside its readable twin in torch."""
