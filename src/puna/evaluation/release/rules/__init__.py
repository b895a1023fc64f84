"""Two longer rules of the release gate, `exam` and `judged`: measurements -> a verdict; gate.py has short rules."""
