"""Pruning of layers, heads and channels: importance scores, selection, sliced weights, refit, report."""
