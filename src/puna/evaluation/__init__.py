"""Measurements of a model: tasks, scores, diagnoses of training runs, human reviews, the release gate."""
