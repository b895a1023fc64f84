"""Checks before a run: memory, time and cost of a model (plan), and problems of model files (doctor)."""
