"""Adapter files: PEFT's directory and further spellings, read, merged into a base and written."""
