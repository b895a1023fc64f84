"""A checkpoint becomes another one without training: import, export, merge, prune, quantize."""
