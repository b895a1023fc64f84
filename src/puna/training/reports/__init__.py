"""Observers of a training run: preview before the first step, report and plot after the last."""
