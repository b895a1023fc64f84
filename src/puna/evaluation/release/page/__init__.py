"""The page of a release decision: a decision and the evidence -> decision.html and decision.md."""
