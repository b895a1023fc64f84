"""Speculative decoding: draft tokens that the model verifies in one step."""
