"""Smaller networks from larger ones: merge an adapter, prune, quantize."""
