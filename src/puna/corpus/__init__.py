"""Training data: documents read from files, and conversations that are generated."""
