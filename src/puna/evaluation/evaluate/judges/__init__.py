"""Judging models and reward models: verdicts on answers, and the agreement of verdicts with human labels."""
