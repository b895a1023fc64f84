"""Question and answer -> grade. One file per grade; table.py lists all grades with the fields of `expected`."""
