"""Checked requests -> the engine, in a thread or process of its own, and chunks back."""
