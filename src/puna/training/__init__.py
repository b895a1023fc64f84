"""Training stages: the objectives of all stages run in the same loop, in a single process or distributed."""
