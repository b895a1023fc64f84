"""Ingested rows -> findings about the data, and the rows that settings leave out, with a reason for every row."""
