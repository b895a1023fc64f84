"""Rules of the release gate, one file each: what was measured -> a verdict with its reasons."""
