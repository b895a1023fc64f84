"""CPU kernels in C++ for a step of a Llama, compiled at first use, with a readable twin of every kernel in torch."""
