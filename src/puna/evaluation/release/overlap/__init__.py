"""Overlap of test questions with training data: by n-grams, and by the whole prompt."""
