"""Training stages: one loop, one objective per stage, on one process or several."""
