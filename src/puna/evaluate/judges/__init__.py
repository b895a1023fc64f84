"""Judging models and reward models: their verdicts, and how far these agree with people."""
