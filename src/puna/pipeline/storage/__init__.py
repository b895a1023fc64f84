"""Durable files: atomic writes, locks, resume journals, and validated reading of JSON."""
