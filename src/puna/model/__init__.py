"""Llama: the network, its sizes, and how its layers compute. Knows no files."""
