"""Rows of two datasets -> the texts of one that stand in the other, by n-grams and by whole prompts."""
