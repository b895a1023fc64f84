"""Question and answer -> grade. A file per grade; table.py lists all grades with the fields of `expected`."""
