"""Rules of the diagnosis, a function per rule: figures -> an optional Finding. table.py lists the rules."""
