"""Speculative decoding: proposal of draft tokens, verified by the model in one step."""
