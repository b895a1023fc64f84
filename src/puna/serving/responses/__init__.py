"""Answers -> bytes within bounds: how many log-probabilities fit, and JSON that is encoded and sent in pieces."""
