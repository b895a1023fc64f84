"""Test questions that also stand in training data: by n-grams, and by the whole prompt."""
