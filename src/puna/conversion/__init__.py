"""Conversion of checkpoints without training: import, export, merge, prune, quantize."""
