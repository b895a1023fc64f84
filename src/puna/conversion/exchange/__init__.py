"""Models in anybody's format -> checkpoints, and checkpoints -> what other programs read."""
