"""Runners: forward passes of the engine, by torch on any device or by compiled kernels on a CPU."""
