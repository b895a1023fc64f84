"""Ingest of raw files: a format is a reader file and a row of `formats.py`."""
