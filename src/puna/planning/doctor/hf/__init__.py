"""Checks of a directory in Hugging Face layout: a file per kind of problem."""
