"""Ingested rows -> findings about the data, and the filtered rows, with a reason for every row."""
