"""Objectives that learn from a teacher: one file for each way."""
