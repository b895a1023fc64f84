"""Stages to change the weights of a trained network: merge an adapter, prune, quantize."""
