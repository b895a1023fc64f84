"""Hugging Face's checkpoint files: config.json, generation_config.json and weights."""
