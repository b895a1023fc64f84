"""Contamination checks between datasets, by word n-grams and by whole prompts."""
