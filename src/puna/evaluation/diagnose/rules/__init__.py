"""Rules of the diagnosis, a function per rule: figures -> a Finding, or None. The table is table.py."""
