"""Who can label: a checkpoint in this process, or an endpoint that scores texts or writes answers."""
