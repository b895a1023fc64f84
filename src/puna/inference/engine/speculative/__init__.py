"""Speculative decoding: the model verifies proposed draft tokens in a single forward pass."""
