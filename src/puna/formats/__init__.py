"""Formats shared with other programs: tokenizers, chat templates, checkpoints."""
