"""Question and answer -> grade. One file a grade; table.py lists the grades and the fields of `expected` they need."""
