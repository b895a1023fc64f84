"""Rows that were read -> findings about the data, and the rows that settings leave out, each with a reason."""
