"""Rows as other programs spell them -> OpenAI's spelling. The tables stand in dialogues.py and preferences.py."""
