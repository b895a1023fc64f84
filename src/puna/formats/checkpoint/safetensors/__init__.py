"""Safetensors files: header parsing and validation, and a streaming writer."""
