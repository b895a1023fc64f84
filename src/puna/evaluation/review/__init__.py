"""Judging answers by people, blind and side by side: the verb `puna review`."""
