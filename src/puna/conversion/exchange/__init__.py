"""Import and export: checkpoints in other programs' formats -> Puna's format, and back."""
