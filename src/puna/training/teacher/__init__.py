"""Teachers: a checkpoint in this process, or an endpoint for scoring or answering."""
