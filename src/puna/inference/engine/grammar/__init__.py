"""Structured output: sampling within a grammar."""
