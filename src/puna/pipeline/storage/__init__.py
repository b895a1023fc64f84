"""Durable files: atomic writes, the resume journal, and validated reading of the JSON that Puna wrote."""
