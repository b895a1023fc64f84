"""Dataset rows in the layouts of other programs -> OpenAI's layout; dialogues.py and preferences.py hold the tables."""
