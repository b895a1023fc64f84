"""Teachers: a checkpoint loaded in-process, or an endpoint for scoring or answering."""
