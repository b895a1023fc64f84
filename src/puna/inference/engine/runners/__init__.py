"""What computes a step: the Runner that the engine drives, by torch on any device or by our kernels on a CPU."""
