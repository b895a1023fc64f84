"""One loop that trains; an objective is one file that says only what differs."""
