"""Rules of the release gate, one rule per file: measurements -> a verdict with reasons."""
