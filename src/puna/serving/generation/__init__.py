"""Requests to the engine in a separate thread or process, and chunks of generated tokens back."""
