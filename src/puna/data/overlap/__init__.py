"""Contamination checks: texts of one dataset that another contains, by word n-grams and by whole prompts."""
