"""Before the first step: what will be trained on, and what memory and time it will take; afterwards, what it took."""
