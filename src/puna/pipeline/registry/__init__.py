"""A model registry: promoted releases -> the release in use, with a history for rollbacks."""
