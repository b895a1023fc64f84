"""Checkpoints and tasks -> scores with intervals, every conversation kept."""
