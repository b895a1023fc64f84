"""Puna raises your own Llama: private documents and an open teacher become a small, proven model of your own."""

__version__ = "0.1.0"
