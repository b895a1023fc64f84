"""What training runs recorded, and scores -> findings in words: why a model is not what was hoped for."""
