"""The basics in eight languages: pages and conversations in each."""
