"""Tokenizers, chat templates and checkpoints in formats of other programs."""
