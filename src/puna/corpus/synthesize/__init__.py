"""Synthetic data: invented businesses with pages and conversations, and sampled answers of a model."""
