"""Rules of the release gate, a file per rule: measurements -> a verdict with reasons."""
