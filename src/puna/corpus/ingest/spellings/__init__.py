"""Rows in the spellings of other programs -> OpenAI's spelling. The tables stand in dialogues.py and preferences.py."""
