"""One small function a rule: figures -> a Finding, or None where they show nothing; table.py lists them all."""
