"""Training data: documents and conversations from files, and generated conversations."""
