"""Dataset rows in layouts of public datasets -> OpenAI's layout; dialogues.py and preferences.py hold the tables."""
