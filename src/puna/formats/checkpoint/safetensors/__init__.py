"""Safetensors files: headers are parsed and checked, tensors are written one at a time."""
