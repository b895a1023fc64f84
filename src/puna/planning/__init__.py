"""Checks before a run: memory, time and cost of a plan, and the doctor for files of other programs."""
