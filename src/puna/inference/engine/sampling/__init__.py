"""Sampling: logits -> the next token of each request."""
