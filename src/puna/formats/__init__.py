"""Formats that Puna shares with other programs: tokenizers, chat templates, checkpoints."""
