"""The page of a release decision: a decision and its evidence -> decision.html and decision.md."""
