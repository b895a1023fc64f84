"""Raw files -> documents and conversations; a format is one file and one row in `readers.py`."""
