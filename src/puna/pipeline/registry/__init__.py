"""Releases that were let through -> the one in use, and the way back to those before it."""
