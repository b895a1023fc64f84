"""Augmentation of training rows: copying drills, and conversations with fresh identifiers."""
