"""Documents, conversations and preferences on disk -> rows in a resumable order -> packed batches of tokens."""
